"""The tables of a study: made from a run folder, written as CSV, read with their types. No jax."""

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

Fractions are in [0, 1]; None where there is no number. `defense` is "none" for the backdoored
model. More columns may follow; a `status` other than "ok" says why a run has no numbers.
"""
PER_CLASS = ("attack", "defense", "seed", "class")
"""The first columns of per_class.csv."""
ALWAYS = {"results": COLUMNS, "per_class": PER_CLASS}
"""Tables that every run folder has, with the columns that every row of them has."""
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
    "paths",
    "changes",
)
"""Tables that a run folder has where they have rows."""
TEXT = {
    "dataset", "model", "attack", "defense", "evolution", "baseline", "equal_mean", "published",
    "status", "net", "chosen", "commit", "device", "class", "detection", "tensor", "statistics",
    "speedup_bound", "runs", "commits", "board", "case", "outcome", "kind",
    "targets", "flagged_classes", "highest", "rule",
}  # fmt: skip
"""Columns that hold text, even where it looks like a number."""


def write_csv(path: str | Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write rows as CSV, `columns` first: whole or not at all, floats exact, None an empty cell.

    Raises `ValueError` where a row lacks one of `columns`.
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
    """Return the rows that `write_csv` wrote, with their types; a column a row lacked is None."""
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
        identities: the columns that identify its rows, one for each seed that shares the model.
        artifact: what the node left, with `counts`, `seconds`, `records`, `members` and
            `environment`.
        classes: the names of the K classes, in the order of the counts.
        more: columns that only some kinds of node have, and `der`.
    """
    counts, last = artifact.counts, artifact.records[-1] if artifact.records else {}
    numbers = {
        "acc": counts.acc,
        "asr": counts.asr,
        "ra": counts.ra,
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
    columns = {name: values.tolist() for name, values in counts._asdict().items()}
    per_class = [
        {name: row[name] for name in ("attack", "defense", "seed")}
        | {"class": name}
        | {column: values[i] for column, values in columns.items()}
        for row in results
        for i, name in enumerate(classes)
    ]
    return {"results": results, "per_class": per_class}


def number_or_none(value: Any) -> Any:
    """Return None for NaN, which a table has no number for."""
    return None if isinstance(value, float) and math.isnan(value) else value


def make_tables(run: RunFolder) -> dict[str, list[Row]]:
    """Return all tables of a run folder by name: rows in the order of the study's nodes.

    A row of `results` without numbers stands for every node with a role that has no finished
    record; its `status` says why. `survival` compares the evolution runs.
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
    """Write the tables of a run folder: results.csv and per_class.csv, others where they have rows.

    A table of d3jax that now has no rows is deleted: it is an earlier study's.
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

    Columns are float64, Int64, boolean or string where all their values are; a missing value is NaN
    or NA. Raises `DataError` where `path` is no run folder or one of an earlier layout.
    """
    tables = make_tables(RunFolder(path))
    return {name: _frame(rows, ALWAYS.get(name, ())) for name, rows in tables.items()}


def result_rows(entries: Iterable[NodeEntry], records: Mapping[str, NodeRecord]) -> list[Row]:
    """Return the rows of results.csv for some nodes of a study, by their records.

    Nodes without a finished record have rows without numbers, whose `status` says why.
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
    # A victim that several seeds share has a row for each, which belongs to that seed's others.
    order = {key: i for i, key in enumerate(dict.fromkeys(map(_run_of, rows)))}
    return sorted(rows, key=lambda row: order[_run_of(row)])


def _run_of(row: Row) -> tuple[Any, Any]:
    return row["attack"], row["seed"]


def _frame(rows: Sequence[Row], columns: Iterable[str]) -> pd.DataFrame:
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    values = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame({name: _series(name, values[name]) for name in names})


def _series(name: str, values: Sequence[Any]) -> pd.Series:
    """A column with the type that its values have; object where they have several."""
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
        value = value.item()  # numpy's scalars print as np.float64(…)
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
