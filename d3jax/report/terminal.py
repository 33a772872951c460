"""The result tables of a study as text for the terminal."""

import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..core.records import Row
from ..results.outcomes import verdict
from ..results.summary import RATES, detections, group_of, points, spread, summarise

STYLES = dict.fromkeys(("kept", "not", "makes", "model"), "bold red") | {"removed": "green"}
"""Colour of a verdict by its first word."""


NUMBERS = ("ACC", "change", "ASR", "change", "RA", "change", "DER", "seeds")


def terminal_table(rows: Sequence[Row]) -> str:
    """Return rows of results.csv as a text table: a line per (attack, defense), rates in percent.

    The table is 100 columns wide, or wider if its contents need it.
    """
    plain = {"color_system": None, "force_terminal": False, "force_jupyter": False}
    file = io.StringIO()
    console = Console(file=file, width=10_000, **plain)
    _print(console, rows, "maximum", 100)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def print_table(rows: Sequence[Row], file: Any = None) -> None:
    """Print a study's results table, in colour on a terminal and as plain text elsewhere.

    The plain text is that of `terminal_table`. Without rows it prints nothing.
    """
    if not rows:  # this part of a study has no models
        return
    console = Console(file=file, highlight=False)
    if console.is_terminal:  # a wrapped line is better than truncated digits
        _print(console, rows, "minimum", console.width)
    else:
        print(terminal_table(rows), file=file)


def _print(console: Any, rows: Sequence[Row], measure: str, width: int) -> None:
    table = _table(summarise(rows))
    needed = Measurement.get(console, console.options.update(max_width=10_000), table)
    console.width = max(width, getattr(needed, measure))
    console.print(table)


def _table(summaries: Sequence[Row]) -> Table:
    where = [name for name in ("dataset", "model") if len({row[name] for row in summaries}) > 1]
    beside = ["published"] if any(row["published"] for row in summaries) else []
    table = Table(box=box.SIMPLE_HEAD, title=None, pad_edge=False)
    for name in (*where, "attack", "defense", *NUMBERS, "outcome", *beside):
        if name in NUMBERS:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    for row, after in zip(summaries, [*summaries[1:], {}], strict=True):
        cells = [row[name] for name in (*where, "attack", "defense")] + _numbers(row)
        style = STYLES.get(verdict(row).split(" ")[0].strip(","), "")
        cells += [Text(verdict(row), style=style), *(row[name] or "none" for name in beside)]
        ends = bool(after) and group_of(row) != group_of(after)
        table.add_row(*(Text(c) if isinstance(c, str) else c for c in cells), end_section=ends)
    return table


def _numbers(row: Row) -> list[str]:
    pairs = [(spread(row, rate), points(row[f"{rate}_change"], sign=True)) for rate in RATES[:3]]
    return [*(text for pair in pairs for text in pair), spread(row, "der"), str(row["n"])]


def print_detections(rows: Sequence[Row]) -> None:
    """Print one line per row of detections.csv, samples.csv or inputs.csv; nothing without rows."""
    if rows:
        print("\n".join(f" {detection['text']}" for detection in detections(rows)) + "\n")
