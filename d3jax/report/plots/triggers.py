"""Inverted triggers: their norms as bars, and the smallest beside the attacker's."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from .common import BEFORE, INK, POISONED, Arrays, Mark, Panel, save_panels
from .samples import difference, drawable, save_rows

MOST = 16
"""Classes in a picture of inverted triggers: those with the smallest."""
CELL = 8.75
"""Inches that all bars share."""


def save_norms(
    path: Path,
    title: str,
    found: Arrays,
    levels: Mapping[str, float],
    classes: Sequence[str],
    targets: Collection[int],
) -> Path | None:
    """Draw bars of the norms and below each its trigger.

    `found` are the arrays of a detection. `levels` are drawn across where they are positive, "median"
    as a whole line and others dashed. `targets` are the attacker's classes.
    """
    from matplotlib.ticker import MaxNLocator

    order = np.sort(found["norm"].argsort(kind="stable")[:MOST])
    norms, images = found["norm"][order], drawable(found["triggers"][order])
    names = [classes[int(label)][:13] + " ★" * (label in targets) for label in order]
    hues = [POISONED if one else BEFORE for one in found["flagged"][order]]
    side = min(CELL / len(order), 1.0)  # inches of an image
    levels = {name: level for name, level in levels.items() if level > 0}  # nor is NaN
    top = 1.05 * max(np.nan_to_num(norms, posinf=0.0).max(), *levels.values(), 1e-9)
    strip = side * images.shape[1] / images.shape[2] / 1.9 * top  # its height on the axis
    marks = [
        Mark((range(len(order)), norms, 0.62), {"color": hues}, "bar"),
        Mark((range(len(order)), names), {"rotation": 0 if len(order) <= 10 else 30}, "set_xticks"),
        Mark((False,), {"axis": "x"}, "grid"),
        *(mark for name, level in levels.items() for mark in _level(name, level, len(order))),
        *(
            _image(image, place, 0.45 * side * len(order) / CELL, strip)
            for place, image in enumerate(images)
        ),
        Mark((), {"aspect": "auto"}, "set"),
    ]  # fmt: skip
    options = {
        "title": f"Smallest triggers · {title}",
        "ylabel": "norm of the trigger",
        "xlim": (-0.5, len(order) - 0.5),
        "ylim": (-strip, top),
        "yticks": [tick for tick in MaxNLocator(4).tick_values(0, top) if tick <= top],
    }
    return save_panels(path, [Panel(marks, options)], 1, 2.72 + 1.9 * strip / top)


def _level(name: str, level: float, count: int) -> list[Mark]:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    place = {"ha": "right", "va": "center", "fontsize": 7.5, "bbox": box}
    dash = {"linestyle": "-" if name == "median" else (0, (4, 2))}
    return [
        Mark((level,), {"color": INK, "linewidth": 0.9} | dash, "axhline"),
        Mark((count - 0.51, level, name), place, "text"),
    ]


def _image(image: np.ndarray, place: int, half: float, strip: float) -> Mark:
    colours = np.broadcast_to(image, (*image.shape[:2], 3))
    extent = (place - half, place + half, -0.95 * strip, -0.05 * strip)
    return Mark((colours,), {"extent": extent, "interpolation": "nearest"}, "imshow")


def save_smallest(path: Path, clean: np.ndarray, stamped: Arrays) -> Path:
    """Draw clean images, the same images under each of some triggers, and what each changed."""
    rows = {"clean": drawable(clean)} | {name: drawable(one) for name, one in stamped.items()}
    for name, images in stamped.items():
        rows[f"{name}: change"] = difference(images, clean).astype(np.uint8)
    return save_rows(path, rows, label_share=0.17)
