"""The report page's section with ACC and ASR by true class, before and after each defence."""

from collections.abc import Sequence

import numpy as np

from ...core.records import Row
from ..plots.classes import any_rate, save_classes
from ..rendering import Markup, render
from ..view import View

COUNTS = {"acc": ("correct", "clean"), "asr": ("reached", "triggered")}


def show(view: View) -> Markup:
    """Return the HTML section with bar charts of ACC and ASR by true class, means over seeds."""
    evolved = view.study.run.manifest.labels("evolution")
    rows = [row for row in view.tables.get("per_class", ()) if row["defense"] not in evolved]
    rates, classes = class_rates(rows), view.study.run.manifest.classes
    return render(
        "classes.html.j2",
        path=save_classes(view.path("classes"), classes, rates, view.study.palette),
        triggered=any_rate(rates, "asr"),
        attack=view.attack.label,
        seeds=list(dict.fromkeys(row["seed"] for row in rows)),
    )


def class_rates(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """Return ACC and ASR [K] of each true class, by defence and kind ("acc" or "asr").

    A rate is a mean over the seeds where it is defined, and NaN if there are none.

    Args:
        rows: rows of per_class.csv.
    """
    counts: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        counts.setdefault(row["defense"], {}).setdefault(row["seed"], []).append(row)
    return {
        name: {kind: _mean(list(seeds.values()), *columns) for kind, columns in COUNTS.items()}
        for name, seeds in counts.items()
    }


def _mean(seeds: Sequence[Sequence[Row]], hits: str, count: str) -> np.ndarray:
    shares = [[row[hits] / row[count] if row[count] else np.nan for row in rows] for rows in seeds]
    known = np.isfinite(shares).sum(0)
    return np.where(known > 0, np.nansum(shares, 0) / np.maximum(known, 1), np.nan)
