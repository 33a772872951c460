"""Bars of ACC and ASR by true class, before and after every defence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .common import PALE, WIDTH, Palette, drawing, short, style_of

NAMED = 20
"""So many classes still have room for their names under the bars."""

PITCH = 1.4
"""Height of a row, of which 1 is a rate of 100 %."""

Rates = Mapping[str, Mapping[str, np.ndarray]]
"""`rates[defense]["acc" or "asr"]`: a fraction for each class, nan where undefined (no bar)."""


def save_classes(path: Path, classes: Sequence[str], rates: Rates, colours: Palette) -> Path | None:
    """Draw a row for each defence, its narrow bars in front of the wide grey ones of "none".

    All rows of a kind are one pair of axes, in which each is `PITCH` high: axes take time.
    """
    names = [name for name in rates if name != "none"] or list(rates)
    kinds = [kind for kind in ("acc", "asr") if any_rate(rates, kind)]
    if not kinds:
        return None
    foot = 0.95 if len(classes) <= NAMED else 0.5  # inches, for the class names
    height = 1.25 * len(names) + foot
    with drawing(path, (WIDTH, height)) as figure:
        axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        margins = {"left": 0.06, "right": 0.99, "top": 1, "bottom": foot / height}
        figure.subplots_adjust(**margins, wspace=0.04)
        for axis, kind in zip(axes, kinds, strict=True):
            for row, name in enumerate(reversed(names)):
                shares = [rates.get("none", {}).get(kind), rates[name].get(kind)]
                title = f"{kind.upper()} · {short(name, 40)}"
                _draw_row(axis, PITCH * row, title, shares, style_of(name, colours)["color"])
            _name_classes(axis, classes)
            axis.grid(False, axis="x")
            axis.spines["left"].set_visible(False)
            axis.set(xlim=(-0.7, len(classes) - 0.3), ylim=(0, PITCH * len(names)))
            axis.tick_params(length=0)
        ticks = [
            (PITCH * row + share / 100, str(share))
            for row in range(len(names))
            for share in (0, 50, 100)
        ]
        axes[0].set_yticks(*zip(*ticks, strict=True))
        axes[0].set_ylabel("share (%)")
    return path


def any_rate(rates: Rates, kind: str) -> bool:
    """Return whether some defence has a number of this kind for some class."""
    return any(np.isfinite(found.get(kind, np.nan)).any() for found in rates.values())


def _draw_row(axis: Any, base: float, title: str, shares: Sequence[Any], colour: str) -> None:
    """Draw bars as collections: `axis.bar` makes an object a bar, which takes seconds."""
    from matplotlib.collections import PolyCollection

    before, after = shares
    for fractions, width, hue in ((before, 0.86, PALE), (after, 0.46, colour)):
        if fractions is not None and (hue == PALE or fractions is not before):
            at = np.flatnonzero(np.isfinite(fractions))
            left, right, top = at - width / 2, at + width / 2, base + fractions[at]
            low = np.full(len(at), base)
            corners = np.stack([left, low, left, top, right, top, right, low], axis=1)
            axis.add_collection(
                PolyCollection(corners.reshape(-1, 4, 2), facecolors=hue, linewidths=0)
            )
    axis.text(-0.7, base + 1.1, title, weight="bold", size="large")


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
