"""The tables of a study in the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from ..results.artifacts import Row
from ..results.summary import RATES, detections, group_of, points, spread, summarise, verdict


def terminal_table(rows: Sequence[Row]) -> str:
    """The study in plain text, 100 columns or as many as it needs: a line for each (attack, defense), in percent."""
    from rich.console import Console
    from rich.measure import Measurement

    table = _table(summarise(rows))
    console = Console(
        file=io.StringIO(),
        width=10_000,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
    )
    console.width = max(100, Measurement.get(console, console.options, table).maximum)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def print_table(rows: Sequence[Row], file: Any = None) -> None:
    """Prints the table: in colour to a terminal, as `terminal_table` anywhere else."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        print(terminal_table(rows), file=file)
        return
    table = _table(summarise(rows))
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).minimum
    console.width = max(
        console.width, needed
    )  # a line that the terminal wraps is better than digits cut off
    console.print(table)


def _table(summaries: Sequence[Row]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    where = [name for name in ("dataset", "model") if len({row[name] for row in summaries}) > 1]
    published = any(row["published"] for row in summaries)
    table = Table(box=box.SIMPLE_HEAD, title=None, pad_edge=False)
    for name in (*where, "attack", "defense"):
        table.add_column(name, overflow="fold")
    for name in ("ACC", "change", "ASR", "change", "RA", "change", "DER", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("outcome", *(["published"] if published else [])):
        table.add_column(name, overflow="fold")
    last = None
    for row in summaries:
        group = group_of(row)
        if last not in (None, group):
            table.add_section()
        last = group
        numbers = [
            cell
            for rate in RATES[:3]
            for cell in (spread(row, rate), points(row[f"{rate}_change"], sign=True))
        ]
        style = {
            "keeps": "bold red",
            "not": "bold red",
            "makes": "bold red",
            "removed": "green",
        }.get(verdict(row).split(" ")[0].strip(","), "")
        cells = [
            *(row[name] for name in where),
            row["attack"],
            row["defense"],
            *numbers,
            spread(row, "der"),
            str(row["n"]),
        ]
        outcome = Text(verdict(row), style=style)
        table.add_row(
            *map(Text, cells), outcome, *([Text(row["published"] or "none")] if published else [])
        )
    return table


def print_detections(rows: Sequence[Row]) -> None:
    """Prints a line for every detection of `detection_rows`, nothing where there are none."""
    if rows:
        print("\n".join(f" {detection['text']}" for detection in detections(rows)) + "\n")
