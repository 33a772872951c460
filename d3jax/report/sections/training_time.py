"""The report page's section on training-time defences: learning curves and image scores."""

import statistics
from collections.abc import Mapping, Sequence

from ...core.records import Row
from ...results.artifacts import Finished
from ...results.log_records import by_loop
from ..plots.training_time import AGAIN, save_kept, save_learning, save_rescored, save_scores
from ..rendering import Markup, Table, render
from ..view import View

CHOICES = {
    "suspects": ("Suspects", "images", 1, 0),
    "suspects_poisoned": ("Poisoned", "of the suspects, %", 100, 1),
    "poison_suspected": ("Suspected", "of the poison, %", 100, 1),
    "labelled_poisoned": ("Poisoned", "of the labelled, %", 100, 2),
}
"""Heading, small line, factor and decimals of each column of the table of choices."""


def show(view: View) -> Markup:
    """Return the HTML section on an attack's training-time defences, grouped by first stage.

    Figures show the first seed, and tables are means over seeds.
    """
    found = [one for one in view.finished("training_time") if "flags" in one.arrays]
    first = [one for one in found if one.entry.seed == found[0].entry.seed]
    stages = dict.fromkeys(one.record.facts["first_stage"] for one in first)
    groups = [
        [one for one in first if one.record.facts["first_stage"] == stage] for stage in stages
    ]
    return Markup("").join(_show(view, group) for group in groups)


def _show(view: View, group: Sequence[Finished]) -> Markup:
    names = [one.entry.label for one in group]
    stage = by_loop(view.study.run.metrics(group[0].record.facts["first_stage"]))
    again = {one.entry.label: one.arrays for one in group if "precision/rescored" in one.arrays}
    mixed = {name: one for name, one in again.items() if 0 < one["flags"].mean() < 1}
    filters = [row for row in view.tables.get("filters", ()) if row["defense"] == names[0]]
    chosen = [row for row in view.tables.get("results", ()) if row["defense"] in names]
    return render(
        "training_time.html.j2",
        names=", ".join(names),
        learning=save_learning(view.path(f"{names[0]}-learning"), stage.get("", [])),
        scores=save_scores(view.path(f"{names[0]}-scores"), group[0].arrays),
        scored=_means(
            [row for row in filters if row["score"] not in AGAIN], "score", _found(filters)
        ),
        rescored=save_rescored(view.path(f"{names[0]}-rescored"), again),
        kept=save_kept(view.path(f"{names[0]}-kept"), mixed, view.study.palette),
        choices=_means(chosen, "defense", CHOICES),
        several=len({row["seed"] for row in chosen}) > 1,
    )


def _found(rows: Sequence[Row]) -> dict[str, tuple[str, str, int, int]]:
    """Return the table headings for a score's AUROC and precisions, in the format of `CHOICES`."""
    shares = [name for name in (rows[0] if rows else ()) if name.startswith("precision_")]
    small = {name: 100 * float(name.removeprefix("precision_")) for name in shares}
    precision = {name: ("Precision", f"of the lowest {small[name]:g} %", 100, 1) for name in shares}
    return {"auroc": ("AUROC", "", 1, 3), **precision}


def _means(rows: Sequence[Row], by: str, columns: Mapping[str, tuple[str, str, int, int]]) -> Table:
    """Return a page table of means over seeds, with one row for each value of the column `by`."""

    def cell(name: str, column: str, factor: int, digits: int) -> str:
        values = [row.get(column) for row in rows if row[by] == name]
        known = [value for value in values if value is not None]
        return f"{factor * statistics.fmean(known):,.{digits}f}" if known else "–"

    names = dict.fromkeys(row[by] for row in rows)
    cells = {
        name: [cell(name, column, *form) for column, (_, _, *form) in columns.items()]
        for name in names
    }
    heads = [(title, small) for title, small, *_ in columns.values()]
    return Table(heads, [(name.replace("_", "-"), found) for name, found in cells.items()])
