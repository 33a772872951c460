"""Figures of inverted triggers: their norms as bars, and the most suspicious one on images."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from .common import BEFORE, INK, POISONED, Arrays, Mark, Panel, save_panels
from .samples import difference, drawable, save_rows

MOST = 16
"""Number of classes in a figure of inverted triggers: those with the smallest norms."""
CELL = 8.75
"""Total width of all bars in inches."""


def save_norms(
    path: Path,
    title: str,
    found: Arrays,
    levels: Mapping[str, float],
    classes: Sequence[str],
    targets: Collection[int],
) -> Path | None:
    """Draw the norm of each class's inverted trigger as a bar, with the trigger below it.

    Args:
        found: the arrays of a model detection (see `results.node_arrays.DetectionArrays`).
        levels: horizontal lines by name, "median" solid and the others dashed. Levels that are not
            positive are left out.
        targets: the attacker's target classes.
    """
    from matplotlib.ticker import MaxNLocator

    order = np.sort(found["norm"].argsort(kind="stable")[:MOST])
    norms, images = found["norm"][order], drawable(found["triggers"][order])
    names = [classes[int(label)][:13] + " ★" * (label in targets) for label in order]
    hues = [POISONED if one else BEFORE for one in found["flagged"][order]]
    side = min(CELL / len(order), 1.0)  # width of an image in inches
    levels = {name: level for name, level in levels.items() if level > 0}  # NaN is not drawn either
    top = 1.05 * max(np.nan_to_num(norms, posinf=0.0).max(), *levels.values(), 1e-9)
    strip = side * images.shape[1] / images.shape[2] / 1.9 * top  # image height in axis units
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
        "title": f"Inverted triggers · {title}",
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
    """Draw clean images, the same images with each trigger, and the change by each trigger."""
    rows = {"clean": drawable(clean)} | {name: drawable(one) for name, one in stamped.items()}
    for name, images in stamped.items():
        rows[f"{name}: difference"] = difference(images, clean).astype(np.uint8)
    return save_rows(path, rows, label_share=0.17)
