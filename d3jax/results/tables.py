"""The tables of a study: functions that make them from a run folder, write and read them.

No jax in here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.records import Row
from ..runtime.files import remove, write_text
from .artifacts import NodeEntry, NodeRecord, RunFolder
from .survival import compare

NUMBERS = ("acc", "asr", "ra", "der", "n_clean", "n_triggered", "seconds")
COLUMNS = ("dataset", "model", "attack", "poison_rate", "defense", "seed", *NUMBERS)
"""The first columns of results.csv, which has a row for each (attack, defense, seed).

Fractions are in [0, 1], and a missing number is None. `defense` is "none" for the backdoored model.
More columns may follow. A `status` other than "ok" says why a row has no numbers.
"""
PER_CLASS = ("attack", "defense", "seed", "class")
"""The first columns of per_class.csv."""
ALWAYS = {"results": COLUMNS, "per_class": PER_CLASS}
"""Tables that every run folder has, with the columns that each of their rows has."""
OTHERS = (
    "detections",
    "evidence",
    "samples",
    "inputs",
    "evolution",
    "survival",
    "filters",
    "forgetting",
    "triggers",
    "relearned",
    "robustness",
    "paths",
    "changes",
)
"""Tables that a run folder has only if they have rows."""
TEXT = {
    "dataset", "model", "attack", "defense", "evolution", "baseline", "equal_mean", "published",
    "status", "net", "chosen", "commit", "device", "class", "detection", "tensor", "statistics",
    "speedup_bound", "runs", "commits", "board", "case", "outcome", "kind",
    "targets", "flagged_classes", "highest", "rule", "evaluation",
}  # fmt: skip
"""Columns that hold text, even if it looks like a number."""


def write_csv(path: str | Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write table rows (dicts) to a CSV file, with the columns `columns` first.

    The file is written whole or not at all. Floats are exact, and None is an empty cell. Raises
    `ValueError` if a row lacks one of `columns`.
    """
    for number, row in enumerate(rows):
        if missing := [name for name in columns if name not in row]:
            raise ValueError(
                f"row {number} of {path} lacks the columns {missing}; it has {list(row)}"
            )
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    text = io.StringIO()
    pd.DataFrame(cells, columns=names, dtype=object).to_csv(text, index=False, lineterminator="\n")
    write_text(Path(path), text.getvalue())


def read_csv(path: str | Path) -> list[Row]:
    """Return the rows of a CSV file from `write_csv`, with their types; an empty cell is None."""
    try:
        cells = pd.read_csv(path, dtype=object, keep_default_na=False, encoding="utf8")
    except pd.errors.EmptyDataError:
        return []
    rows = cells.to_dict("records")
    return [{str(name): _value(str(name), row[name]) for name in row} for row in rows]


def rows_of_model(
    identities: Sequence[Row], artifact: Any, classes: Sequence[str], more: Row
) -> dict[str, list[Row]]:
    """Return the rows of a finished model in results.csv and per_class.csv.

    Args:
        identities: the identifying columns of its rows, one for each seed that shares the model.
        artifact: the result of the node, with `counts`, `seconds`, `records`, `members` and
            `environment`.
        classes: the names of the K classes, in the order of the counts.
        more: columns that only some kinds of node have, and `der`.
    """
    counts, last = artifact.counts, artifact.records[-1] if artifact.records else {}
    other, share = counts.moved
    numbers = {
        "acc": counts.acc,
        "asr": counts.asr,
        "ra": counts.ra,
        "moved_asr": share,
        "moved_to": classes[other] if share > 0 else None,
        "n_clean": int(counts.clean.sum()),
        "n_triggered": int(counts.triggered.sum()),
        "seconds": artifact.seconds,
        "acc_non_target": counts.acc_non_target,
        "members": artifact.members,
        "cosine": last.get("cosine"),
        "distance_ratio": last.get("distance_ratio"),
        "commit": artifact.environment["commit"],
        "device": artifact.environment["device"],
    }
    numbers = {name: number_or_none(value) for name, value in (numbers | more).items()}
    first = dict.fromkeys(COLUMNS)
    results = [first | row | numbers | {"status": "ok"} for row in identities]
    counted = {name: values for name, values in counts._asdict().items() if values is not None}
    columns = {name: values.tolist() for name, values in counted.items()}
    per_class = [
        {name: row[name] for name in ("attack", "defense", "seed")}
        | {"class": name}
        | {column: values[i] for column, values in columns.items()}
        for row in results
        for i, name in enumerate(classes)
    ]
    return {"results": results, "per_class": per_class}


def number_or_none(value: Any) -> Any:
    """Return a value, or None if it is NaN, because tables have no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def make_tables(run: RunFolder) -> dict[str, list[Row]]:
    """Return all tables of a run folder as rows by name, in the order of the study's nodes.

    In `results`, a node with a role and no finished record has rows without numbers, whose `status`
    says why. `survival` compares the evolution runs.
    """
    entries = run.manifest.nodes
    records = {entry.name: record for entry in entries if (record := run.record(entry.name))}
    tables: dict[str, list[Row]] = {name: [] for name in ALWAYS}
    for entry in entries:
        record = records.get(entry.name)
        for name, rows in (record.tables if record else {}).items():
            tables.setdefault(name, []).extend(rows)
    tables["results"] = result_rows(entries, records)
    if evolutions := run.manifest.evolutions:
        evolved = tables.get("evolution", [])
        tables["survival"] = compare(tables["results"], evolved, evolutions)
    return {name: rows for name, rows in tables.items() if rows or name in ALWAYS}


def write_tables(run_path: str | Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Write the tables of a run folder, given as rows by name, as CSV files.

    results.csv and per_class.csv are always written, other tables only if they have rows. The file
    of a table that now has no rows is deleted, because it is from an earlier study.
    """
    folder = Path(run_path)
    for name in dict.fromkeys([*ALWAYS, *tables]):
        rows = tables.get(name, [])
        if rows or name in ALWAYS:
            write_csv(folder / f"{name}.csv", rows, ALWAYS.get(name, ()))
    for name in OTHERS:
        if not tables.get(name):
            remove(folder / f"{name}.csv")


def load_results(path: str | Path) -> dict[str, pd.DataFrame]:
    """Return all tables of a run folder as DataFrames by name, such as "results" and "per_class".

    A column is float64, Int64, boolean or string if all its values are, else object. A missing
    value is NaN or NA. Raises `DataError` if `path` is not a run folder, or has an earlier layout.
    """
    tables = make_tables(RunFolder(path))
    return {name: _frame(rows, ALWAYS.get(name, ())) for name, rows in tables.items()}


def result_rows(entries: Iterable[NodeEntry], records: Mapping[str, NodeRecord]) -> list[Row]:
    """Return the rows of results.csv for some nodes of a study, from their records by name.

    Nodes without a finished record have rows without numbers, whose `status` says why. All rows of
    an attack and a seed are next to each other.
    """
    rows = []
    for entry in entries:
        record = records.get(entry.name)
        if record and record.status == "ok":
            rows += record.tables.get("results", [])
        elif entry.role:
            status = record.status if record else "not finished: no model yet"
            empty = dict.fromkeys(NUMBERS) | {"status": status}
            rows += [dict.fromkeys(COLUMNS) | row | empty for row in entry.rows]
    # A victim that several seeds share has a row for each; move it to the rows of that seed.
    order = {key: i for i, key in enumerate(dict.fromkeys(map(_run_of, rows)))}
    return sorted(rows, key=lambda row: order[_run_of(row)])


def _run_of(row: Row) -> tuple[Any, Any]:
    return row["attack"], row["seed"]


def _frame(rows: Sequence[Row], columns: Iterable[str]) -> pd.DataFrame:
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    values = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame({name: _series(name, values[name]) for name in names})


def _series(name: str, values: Sequence[Any]) -> pd.Series:
    """Return a table column as a pandas Series with the type of its values, or object if mixed."""
    found = pd.api.types.infer_dtype(values, skipna=True)
    if found == "empty":
        found = "floating" if name in NUMBERS else "string" if name in TEXT else ""
    types = {
        "integer": "Int64",
        "floating": "float64",
        "mixed-integer-float": "float64",
        "boolean": "boolean",
        "string": "string",
    }
    return pd.Series(values, dtype=types.get(found, "object"))


def _cell(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()  # NumPy scalars print as np.float64(…)
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    return str(value).replace("\r\n", "\n").replace("\r", "\n")  # csv writes a lone "\r" unquoted


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
        if str(value) == cell:  # "007" and "1_000" are text
            return value
    return {"True": True, "False": False}.get(cell, cell)
