"""The report page's section on the ASR of each detection's inverted trigger on each model."""

from collections.abc import Sequence

from ...core.records import Row
from ...results.summary import points
from ..rendering import Markup, Table, render
from ..view import View


def show(view: View) -> Markup:
    """Return the HTML section with tables of inverted-trigger ASR, one for each detection.

    An unknown attack gets none here, because its tables are in the section on the external model.
    """
    rows = [] if view.unknown else view.tables.get("triggers", ())
    return render("inverted_triggers.html.j2", triggers=tables_of(rows))


def tables_of(rows: Sequence[Row]) -> dict[str, Table]:
    """Return a page table for each detection from rows of triggers.csv, with a row per model."""
    return {
        name: _table([row for row in rows if row["detection"] == name])
        for name in dict.fromkeys(row["detection"] for row in rows)
    }


def _table(rows: Sequence[Row]) -> Table:
    seeds = {row["seed"]: row for row in rows}
    how = {True: "flagged", False: "highest score, not flagged"}
    columns = [
        (f"Class {row['class']}", f"seed {seed}; {how[row['flagged']]}; score {row['score']:.2f}")
        for seed, row in seeds.items()
    ]
    shares = {(row["defense"], row["seed"]): points(row["turned"]) for row in rows}
    names = dict.fromkeys(row["defense"] for row in rows)
    return Table(
        columns, [(name, [shares.get((name, seed), "–") for seed in seeds]) for name in names]
    )
