"""Bars of ACC and ASR by true class, before and after every defence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .common import PALE, WIDTH, Palette, drawing, short, style_of

NAMED = 20
"""So many classes still have room for their names under the bars."""

Rates = Mapping[str, Mapping[str, np.ndarray]]
"""`rates[defense]["acc" or "asr"]`: a fraction for each class, nan where undefined (no bar)."""


def save_classes(path: Path, classes: Sequence[str], rates: Rates, colours: Palette) -> Path | None:
    """Draw a row for each defence, its narrow bars in front of the wide grey ones of "none"."""
    names = [name for name in rates if name != "none"] or list(rates)
    kinds = [kind for kind in ("acc", "asr") if any_rate(rates, kind)]
    if not kinds:
        return None
    foot = 0.95 if len(classes) <= NAMED else 0.5  # inches, for the class names
    height = 1.25 * len(names) + foot
    with drawing(path, (WIDTH, height), layout="none") as figure:
        axes = figure.subplots(len(names), len(kinds), squeeze=False, sharex=True, sharey=True)
        margins = {"left": 0.06, "right": 0.99, "top": 1 - 0.3 / height, "bottom": foot / height}
        figure.subplots_adjust(**margins, hspace=0.5, wspace=0.04)
        for row, name in zip(axes, names, strict=True):
            for axis, kind in zip(row, kinds, strict=True):
                after = {} if name == "none" else rates[name]
                _draw_bars(axis, rates.get("none", {}).get(kind), 0.86, PALE)
                _draw_bars(axis, after.get(kind), 0.46, style_of(name, colours)["color"])
                axis.set(title=f"{kind.upper()} · {short(name, 40)}", ylim=(0, 103))
                axis.grid(False, axis="x")
                axis.tick_params(bottom=False)
            row[0].set(ylabel="share (%)", yticks=(0, 50, 100), xlim=(-0.7, len(classes) - 0.3))
        for axis in axes[-1]:
            _name_classes(axis, classes)
    return path


def any_rate(rates: Rates, kind: str) -> bool:
    """Return whether some defence has a number of this kind for some class."""
    return any(np.isfinite(found.get(kind, np.nan)).any() for found in rates.values())


def _draw_bars(axis: Any, fractions: np.ndarray | None, width: float, colour: str) -> None:
    """Draw bars as one collection: `axis.bar` makes an object a bar, which takes seconds."""
    from matplotlib.collections import PolyCollection

    if fractions is None:
        return
    at = np.flatnonzero(np.isfinite(fractions))
    left, right, top = at - width / 2, at + width / 2, 100 * fractions[at]
    corners = np.stack([left, 0 * top, left, top, right, top, right, 0 * top], axis=1)
    bars = PolyCollection(corners.reshape(-1, 4, 2), facecolors=colour, linewidths=0)
    axis.add_collection(bars)


def _name_classes(axis: Any, classes: Sequence[str]) -> None:
    """Write class names while they can be read, some of their numbers where there are too many."""
    if len(classes) <= NAMED:
        names = [short(name, 14) for name in classes]
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(classes)), names, **slanted)
        axis.set_xlabel("true class")
    else:
        axis.set_xticks(range(0, len(classes), 10 ** (len(str(len(classes))) - 2)))
        axis.set_xlabel("true class (its number)")
