"""Inverted triggers: their norms as bars, and the smallest beside the attacker's."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .common import BEFORE, INK, POISONED, WIDTH, drawing
from .samples import difference, drawable, save_rows

MOST = 16
"""Classes in a picture of inverted triggers: those with the smallest."""
LEFT, RIGHT = 0.07, 0.995
"""Where the bars begin and end, as shares of the width."""


def save_norms(
    path: Path,
    title: str,
    found: Mapping[str, np.ndarray],
    levels: Mapping[str, float],
    classes: Sequence[str],
    targets: Collection[int],
) -> Path:
    """Draw bars of the norms and below each its trigger.

    `found` are the arrays of a detection. `levels` are drawn across where they are positive, "median"
    as a whole line and others dashed. `targets` are the attacker's classes.
    """
    order = np.sort(found["norms"].argsort(kind="stable")[:MOST])
    height, width = found["triggers"].shape[1:3]
    cell = (RIGHT - LEFT) * WIDTH / len(order)  # inches
    foot = min(cell, 1.0) * height / width + 0.55
    size = (WIDTH, foot + 1.9 + 0.35)
    with drawing(path, size) as figure:
        axis = figure.add_axes((LEFT, foot / size[1], RIGHT - LEFT, 1.9 / size[1]))
        _draw_norms(axis, found["norms"][order], found["flagged"][order], levels)
        labels = found["labels"][order].tolist()
        names = [classes[label][:13] + " ★" * (label in targets) for label in labels]
        axis.set_xticks(range(len(order)), names, rotation=0 if len(order) <= 10 else 30)
        axis.set(title=f"Smallest triggers · {title}")
        for place, image in enumerate(drawable(found["triggers"][order])):
            side = min(cell, 1.0) * 0.9
            x = LEFT * WIDTH + (place + 0.5) * cell - side / 2
            box = (x / WIDTH, 0.05 / size[1], side / WIDTH, side * height / width / size[1])
            inset = figure.add_axes(box)
            inset.imshow(np.broadcast_to(image, (height, width, 3)), interpolation="nearest")
            inset.set_axis_off()
    return path


def _draw_norms(
    axis: Any, norms: np.ndarray, flagged: np.ndarray, levels: Mapping[str, float]
) -> None:
    colours = [POISONED if one else BEFORE for one in flagged]
    axis.bar(range(len(norms)), norms, width=0.62, color=colours)
    for name, level in levels.items():
        if level > 0:
            dash = "-" if name == "median" else (0, (4, 2))
            axis.axhline(level, color=INK, linewidth=0.9, linestyle=dash)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            place = {"ha": "right", "va": "center", "fontsize": 7.5, "bbox": box}
            axis.text(len(norms) - 0.51, level, name, **place)
    axis.set(xlim=(-0.5, len(norms) - 0.5), ylabel="norm of the trigger")
    axis.grid(False, axis="x")
    axis.tick_params(bottom=False)


def save_smallest(path: Path, clean: np.ndarray, stamped: Mapping[str, np.ndarray]) -> Path:
    """Draw clean images, the same images under each of some triggers, and what each changed."""
    images = {"clean": clean, **stamped}
    changes = {f"{name}: change": difference(image, clean) for name, image in stamped.items()}
    rows = {name: drawable(image) for name, image in images.items()}
    rows |= {name: change.astype(np.uint8) for name, change in changes.items()}
    return save_rows(path, rows, label_share=0.17)
