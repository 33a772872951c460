"""Bar charts of ACC and ASR by true class, before and after each defence, for the report page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .common import ABOVE, PALE, Mark, Palette, Panel, save_panels, short, style_of

NAMED = 20
"""The largest number of classes whose names fit under the bars."""

PITCH = 1.4
"""Height of a defence's row in units of the y axis, where a rate of 100 % has the height 1."""

Rates = Mapping[str, Mapping[str, np.ndarray]]
"""Fractions [K] of each class as `rates[defense]["acc" or "asr"]`; NaN (undefined) has no bar."""


def save_classes(path: Path, classes: Sequence[str], rates: Rates, colours: Palette) -> Path | None:
    """Draw ACC and ASR by true class as bars, a row for each defence, and save the figure.

    Each row is in front of the wide grey bars of "none", the backdoored model. All rows of a kind
    share one pair of axes, because creating axes is slow.
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
    """Return whether some defence has a finite rate for some class; `kind` is "acc" or "asr"."""
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
    """Return a `Mark` of one bar for each class, whose heights are the rates `fractions`.

    All bars are one collection. `axis.bar` would create one object per bar, which takes seconds.
    """
    from matplotlib.collections import PolyCollection

    at = np.flatnonzero(np.isfinite(fractions))
    left, right, low, top = at - width / 2, at + width / 2, base + 0 * at, base + fractions[at]
    corners = np.stack([left, low, left, top, right, top, right, low], axis=1)
    bars = PolyCollection(corners.reshape(-1, 4, 2), facecolors=colour, linewidths=0)  # pyright: ignore[reportArgumentType]  # an array is accepted too
    return Mark((bars,), {}, "add_collection")


def _ticks(classes: Sequence[str]) -> Mark:
    """Return a `Mark` of x ticks: names of up to `NAMED` classes, else some class numbers."""
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    if len(classes) <= NAMED:
        return Mark(
            (range(len(classes)), [short(name, 14) for name in classes]), slanted, "set_xticks"
        )
    return Mark((range(0, len(classes), 10 ** (len(str(len(classes))) - 2)),), {}, "set_xticks")
