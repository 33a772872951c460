"""The report page's sections on detectors of poisoned training samples and triggered inputs."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ...core.records import Row
from ...results.summary import mean_spread
from ..plots.scores import save_detector_scores, save_extremes, save_roc
from ..rendering import Cell, Markup, Table, render
from ..view import View


class Shown(NamedTuple):
    """The words by which a page section describes sample detectors, or input detectors.

    `kind` is its kind of node, and `table` the stem of its CSV file. `what` names the items that it
    scores, and `positive` the items that it should find.
    """

    kind: str
    table: str
    what: str
    positive: str


SAMPLES = Shown("sample_detection", "samples", "training samples", "poisoned")
INPUTS = Shown("input_detection", "inputs", "test inputs", "triggered")
Column = tuple[str, str, float, int]
COLUMNS: dict[str, Column] = {
    "auroc": ("AUROC", "", 1, 3),
    "tpr_1": ("TPR", "at 1 % FPR, %", 100, 1),
    "tpr_5": ("TPR", "at 5 % FPR, %", 100, 1),
    "precision": ("Precision", "at its threshold, %", 100, 1),
    "recall": ("Recall", "at its threshold, %", 100, 1),
    "fpr": ("FPR", "at its threshold, %", 100, 1),
}
"""Heading, small line, factor and decimals of each column of the table."""
REJECTING: dict[str, Column] = {
    "acc_rejecting": ("ACC", "if flagged inputs are rejected, %", 100, 1),
    "asr_rejecting": ("ASR", "if flagged inputs are rejected, %", 100, 1),
}
"""Further columns of the table of input detectors."""


def show(shown: Shown, view: View) -> Markup:
    """Return the HTML section on sample or input detectors: a table of rates, and figures.

    Rates are means over seeds. The figures show the scores' histograms, the ROC curves, and the
    images with the highest and lowest scores.
    """
    rows = view.tables.get(shown.table, ())
    found = {one.entry.label: one.arrays for one in view.finished(shown.kind) if one.arrays}
    columns = COLUMNS | (REJECTING if shown is INPUTS else {})
    heads = [(title, small) for title, small, *_ in columns.values()]
    names = dict.fromkeys(row["detection"] for row in rows)
    cells = [
        (name, _cells(columns, [row for row in rows if row["detection"] == name])) for name in names
    ]
    return render(
        "detector_scores.html.j2",
        shown=shown,
        attack=view.attack.label,
        table=Table(heads, cells),
        path=save_detector_scores(view.path(shown.table), found, shown.positive),
        roc=save_roc(view.path(f"{shown.table}-roc"), found),
        extremes=save_extremes(view.path(f"{shown.table}-images"), found),
        seeds=len({row["seed"] for row in rows}),
    )


def _cells(columns: Mapping[str, Column], rows: Sequence[Row]) -> list[Cell]:
    return [
        mean_spread([row.get(name) for row in rows], factor, digits)
        for name, (_, _, factor, digits) in columns.items()
    ]


show_samples, show_inputs = partial(show, SAMPLES), partial(show, INPUTS)
