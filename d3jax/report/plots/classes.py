"""Bars of ACC and ASR by true class, before and after every defence."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .common import ABOVE, PALE, Mark, Palette, Panel, save_panels, short, style_of

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
    names = [name for name in rates if name != "none"][::-1] or list(rates)
    kinds = [kind for kind in ("acc", "asr") if any_rate(rates, kind)]
    below = 0.95 if len(classes) <= NAMED else 0.5
    height = 1.25 * len(names) + below + ABOVE
    return save_panels(
        path,
        [_panel(kind, names, classes, rates, colours, below) for kind in kinds],
        max(1, len(kinds)),
        height,
    )


def any_rate(rates: Rates, kind: str) -> bool:
    """Return whether some defence has a number of this kind for some class."""
    return any(np.isfinite(found.get(kind, np.nan)).any() for found in rates.values())


def _panel(
    kind: str,
    names: Sequence[str],
    classes: Sequence[str],
    rates: Rates,
    colours: Palette,
    below: float,
) -> Panel:
    ticks = {
        PITCH * row + share / 100: share for row in range(len(names)) for share in (0, 50, 100)
    }
    wide = [
        _bars(PITCH * row, rates["none"][kind], 0.86, PALE)
        for row in range(len(names))
        if kind in rates.get("none", {})
    ]
    narrow = [
        _bars(PITCH * row, rates[name][kind], 0.46, style_of(name, colours)["color"])
        for row, name in enumerate(names)
        if name != "none" and kind in rates[name]
    ]
    bold = {"weight": "bold", "size": "large"}
    titles = [
        Mark((-0.7, PITCH * row + 1.1, f"{kind.upper()} · {short(name, 40)}"), bold, "text")
        for row, name in enumerate(names)
    ]
    options = {
        "xlabel": "true class",
        "xlim": (-0.7, len(classes) - 0.3),
        "ylabel": "share (%)",
        "ylim": (0, PITCH * len(names) - 0.15),
        "yticks": list(ticks),
        "yticklabels": list(ticks.values()),
    }
    marks = [_ticks(classes), Mark((False,), {"axis": "x"}, "grid"), *wide, *narrow, *titles]
    return Panel(marks, options, below=below)


def _bars(base: float, fractions: np.ndarray, width: float, colour: str) -> Mark:
    """Return bars as a collection: `axis.bar` makes an object a bar, which takes seconds."""
    from matplotlib.collections import PolyCollection

    at = np.flatnonzero(np.isfinite(fractions))
    left, right, low, top = at - width / 2, at + width / 2, base + 0 * at, base + fractions[at]
    corners = np.stack([left, low, left, top, right, top, right, low], axis=1)
    bars = PolyCollection(corners.reshape(-1, 4, 2), facecolors=colour, linewidths=0)  # pyright: ignore[reportArgumentType]  # an array is one
    return Mark((bars,), {}, "add_collection")


def _ticks(classes: Sequence[str]) -> Mark:
    """Return class names while they can be read, some of their numbers where there are too many."""
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    if len(classes) <= NAMED:
        return Mark(
            (range(len(classes)), [short(name, 14) for name in classes]), slanted, "set_xticks"
        )
    return Mark((range(0, len(classes), 10 ** (len(str(len(classes))) - 2)),), {}, "set_xticks")
