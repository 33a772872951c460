"""The figure of robustness: the ASR of each model over the changes of the trigger."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core.records import Row
from .common import PALE, Mark, Palette, Panel, save_panels, style_of

PANELS = {
    "shift": ("Place", "shift up and to the left (pixels)", 0),
    "scale": ("Size", "factor of height and width", 1),
    "strength": ("Strength", "factor of the residual", 1),
}
"""Title, x axis and the amount of no change, by the name of a change in robustness.csv."""


def save_robustness(path: Path, rows: Sequence[Row], colours: Palette) -> Path | None:
    """Draw the ASR in rows of robustness.csv, a panel per change and a curve per model.

    A curve is the mean over seeds. A grey line marks the amount that changes nothing.
    """
    panels = [
        _panel([row for row in rows if row["change"] == change], *words, colours)
        for change, words in PANELS.items()
    ]
    shown = [panel for panel in panels if panel]
    return save_panels(path, shown, len(shown), 2.6)


def _panel(
    rows: Sequence[Row], title: str, amount: str, none: float, colours: Palette
) -> Panel | None:
    labels = dict.fromkeys(row["defense"] for row in rows if row["asr"] is not None)
    if not labels:
        return None
    marks = [Mark((none,), {"color": PALE, "linewidth": 1, "zorder": 1}, "axvline")]
    for label in labels:
        style = style_of(label, colours) | {"linewidth": 1.5, "marker": "o", "markersize": 3}
        at, asr = means(rows, label)
        marks.append(Mark((at, 100 * asr), style | {"label": label}))
    options = {"title": title, "xlabel": amount, "ylabel": "ASR (%)", "ylim": (-3, 103)}
    return Panel(marks, options, whole=none == 0)


def means(rows: Sequence[Row], label: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the amounts of one change in ascending order, and a model's mean ASR over seeds."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["defense"] == label and row["asr"] is not None:
            found.setdefault(row["amount"], []).append(row["asr"])
    amounts = sorted(found)
    return np.array(amounts), np.array([np.mean(found[amount]) for amount in amounts])
