"""Write the tables and the report page of a run folder again: `python -m d3jax.report RUN`."""

import sys
from collections.abc import Sequence

from d3jax.core.errors import DataError
from d3jax.report import make_report
from d3jax.results.artifacts import RunFolder
from d3jax.runtime.commands import Parser, exit_code, program


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m d3jax.report` with the arguments `argv`, and return the exit code."""
    return exit_code(lambda: _report(argv))


def _report(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m d3jax.report", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/quickstart")
    path = parser.parse_args(argv).run
    run = RunFolder(path)
    missing = [entry.name for entry in run.manifest.nodes if not run.record(entry.name)]
    if missing and len(missing) == len(run.manifest.nodes):
        raise DataError(
            f"{path}: none of its {len(missing)} nodes has a record, so nothing to show"
        )
    print(make_report(path))
    if missing:
        print(
            f"d3jax: {len(missing)} of {len(run.manifest.nodes)} nodes have no record, such as "
            f"{missing[0]}; run the study again to compute them",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    program(main)
