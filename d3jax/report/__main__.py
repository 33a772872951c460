"""Make the tables and the page of a run folder again: `python -m d3jax.report RUN`."""

from collections.abc import Sequence

from d3jax.report import make_report
from d3jax.runtime.commands import Parser, exit_code, program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (see `runtime.commands`)."""
    return exit_code(lambda: _report(argv))


def _report(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m d3jax.report", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/quickstart")
    print(make_report(parser.parse_args(argv).run))
    return 0


if __name__ == "__main__":
    program(main)
