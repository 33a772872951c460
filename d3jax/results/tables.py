"""Rows as CSV files with their types, and files that are written whole. No jax."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.files import write_text

Row = dict[str, Any]

NUMBERS = ("acc", "asr", "ra", "der", "n_clean", "n_triggered", "seconds")
COLUMNS = ("dataset", "model", "attack", "poison_rate", "defense", "seed", *NUMBERS)
"""What every row of results.csv has: one for each (attack, defense, seed), fractions in [0, 1], None where there is no number, `defense`
"none" for the backdoored model. Any others stand behind; a text column `status` other than "ok" says why a run failed."""
TEXT = {
    "dataset",
    "model",
    "attack",
    "defense",
    "evolution",
    "baseline",
    "equal_mean",
    "published",
    "status",
}


def write_csv(path: str | Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Writes rows, `columns` first, to `path` in one stroke: a reader sees the old file or the new one. None is an empty cell, floats are exact.

    Raises:
        ValueError: a row lacks one of `columns`.
    """
    for number, row in enumerate(rows):
        if missing := [name for name in columns if name not in row]:
            raise ValueError(
                f"row {number} of {path} lacks the columns {missing}; it has {list(row)}"
            )
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    write_text(Path(path), text.getvalue())


def read_csv(path: str | Path) -> list[Row]:
    """The rows `write_csv` wrote, with their types; a column that a row did not have is None."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: _value(name, cell) for name, cell in row.items()} for row in csv.DictReader(file)
        ]


def _cell(value: Any) -> str:
    value = (
        value.item() if hasattr(value, "item") else value
    )  # numpy's scalars print as np.float64(…)
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _value(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if name in TEXT:
        return cell
    for read in (int, float):
        try:
            value = read(cell)
        except ValueError:
            continue
        if str(value) == cell:  # "007" and "1_000" are somebody's text
            return value
    return {"True": True, "False": False}.get(cell, cell)
