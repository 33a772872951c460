"""Make the tables and the page of a run folder again: `python -m d3jax.report RUN`."""

import argparse
import sys
from collections.abc import Sequence

from ..core.errors import D3JaxError
from ..runtime.output import accept_any_text
from . import make_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a run folder's report and print its path; return the exit code."""
    accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m d3jax.report", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/quickstart")
    try:
        print(make_report(parser.parse_args(arguments).run))
    except D3JaxError as error:
        print(f"d3jax: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
