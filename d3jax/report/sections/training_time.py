"""Training-time defences: how images were learned, and how well scores told the poison apart."""

import statistics
from collections.abc import Mapping, Sequence

from ...results.artifacts import Finished, by_loop
from ...results.tables import Row
from ..plots.training_time import HUES, save_kept, save_learning, save_rescored, save_scores
from ..rendering import Markup, Table, render
from ..view import View

CHOICES = {
    "suspects": ("Suspects", "images", 1, 0),
    "suspects_poisoned": ("Poisoned", "of the suspects, %", 100, 1),
    "labelled_poisoned": ("Poisoned", "of the labelled, %", 100, 2),
}
"""Heading, small line, factor and decimals of a column."""


def show(view: View) -> Markup:
    """Return of each first stage how it learned and what its scores find, and what it led to.

    Pictures are of the first seed, tables are means over seeds.
    """
    found = view.finished("training_time")
    groups: dict[str, list[Finished]] = {}
    for one in found:
        if one.entry.seed == found[0].entry.seed and "flags" in one.arrays:
            groups.setdefault(one.record.facts.get("first_stage", ""), []).append(one)
    return Markup("").join(_show(view, first, group) for first, group in groups.items())


def _show(view: View, first_stage: str, group: Sequence[Finished]) -> Markup:
    names, first = [one.entry.label for one in group], group[0]
    stem, colours = names[0], view.study.palette
    learned = by_loop(view.study.run.metrics(first_stage)).get("", []) if first_stage else []
    again = {one.entry.label: one.arrays for one in group if "precision/rescored" in one.arrays}
    mixed = {name: one for name, one in again.items() if 0 < one["flags"].mean() < 1}
    filters = [row for row in view.tables.get("filters", ()) if row["defense"] == stem]
    chosen = [row for row in view.tables.get("results", ()) if row["defense"] in names]
    return render(
        "training_time.html.j2",
        names=", ".join(names),
        learning=save_learning(view.path(f"{stem}-learning"), learned),
        scores=save_scores(view.path(f"{stem}-scores"), first.arrays),
        scored=_means([row for row in filters if row["score"] in HUES], "score", _found(filters)),
        rescored=save_rescored(view.path(f"{stem}-rescored"), again),
        kept=save_kept(view.path(f"{stem}-kept"), mixed, colours),
        choices=_means(chosen, "defense", CHOICES),
        several=len({row["seed"] for row in chosen}) > 1,
    )


def _found(rows: Sequence[Row]) -> dict[str, tuple[str, str, int, int]]:
    """Return the columns that say how well a score finds the poison."""
    names = [name for name in (rows[0] if rows else ()) if name.startswith("precision_")]
    shares = {name: 100 * float(name.removeprefix("precision_")) for name in names}
    precision = {
        name: ("Precision", f"of the lowest {share:g} %", 100, 1) for name, share in shares.items()
    }
    return {"auroc": ("AUROC", "", 1, 3), **precision}


def _means(rows: Sequence[Row], by: str, columns: Mapping[str, tuple[str, str, int, int]]) -> Table:
    """Return a table with a row for each value of `by`: means over seeds of the columns."""

    def cell(name: str, column: str, factor: int, digits: int) -> str:
        known = [row[column] for row in rows if row[by] == name and row[column] is not None]
        return f"{factor * statistics.fmean(known):,.{digits}f}" if known else "–"

    names = dict.fromkeys(row[by] for row in rows)
    cells = [
        [cell(name, column, *form) for column, (_, _, *form) in columns.items()] for name in names
    ]
    plain = [name.replace("_", "-") for name in names]
    heads = [(title, small) for title, small, *_ in columns.values()]
    return Table(heads, list(zip(plain, cells, strict=True)))
