"""The command that compares runs: `python -m d3jax.compare RUN [RUN …] --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d3jax.core.errors import ConfigError
from d3jax.core.paths import user_path
from d3jax.report.comparison import leaderboard_html, leaderboard_markdown
from d3jax.results.compare import COLUMNS, leaderboard
from d3jax.results.compared_runs import read_runs
from d3jax.results.tables import write_csv
from d3jax.runtime.commands import Parser, exit_code, program
from d3jax.runtime.files import write_text


def compare(runs: Sequence[str | Path], out: str | Path) -> None:
    """Write the leaderboard of several run folders into `out`, as CSV, Markdown and HTML.

    The files are leaderboard.csv, leaderboard.md and leaderboard.html. Raises `DataError` if a
    folder is not a run folder, and `ConfigError` if `out` cannot be written.
    """
    read = read_runs(runs)
    boards = leaderboard(read)
    names = [run.name for run in read]
    rows = [{name: row[name] for name in COLUMNS} for board in boards for row in board.rows]
    folder = user_path(out, "--out")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file, want a folder")
    try:
        write_csv(folder / "leaderboard.csv", rows, COLUMNS)
        write_text(folder / "leaderboard.md", leaderboard_markdown(boards, names))
        write_text(folder / "leaderboard.html", leaderboard_html(boards, names))
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written ({error.strerror})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the compare command and return the exit code (see `runtime.commands`)."""
    return exit_code(lambda: _compare(argv))


def _compare(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m d3jax.compare", description="Compare runs in one leaderboard.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of finished studies")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write the leaderboard to"
    )
    options = parser.parse_args(argv)
    compare(options.runs, options.out)
    print(f"d3jax: leaderboard: {user_path(options.out) / 'leaderboard.html'}")
    return 0


if __name__ == "__main__":
    program(main)
