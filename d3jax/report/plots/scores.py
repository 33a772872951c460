"""Figures of detector scores on the report page: histograms, ROC curves, images, class scores."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from .common import (
    BEFORE,
    PALE,
    POISONED,
    Arrays,
    Mark,
    Panel,
    palette,
    save_panels,
    short,
    style_of,
)  # fmt: skip
from .samples import drawable, save_rows

BINS = 40
MOST = 40
"""Number of classes in a figure of class scores: those with the highest scores."""


def save_detector_scores(path: Path, found: Mapping[str, Arrays], kind: str) -> Path | None:
    """Draw histograms of detectors' scores for clean and positive samples, a panel per detector.

    The first and the last bin include the outermost 0.5 % of the scores on each side.

    Args:
        found: arrays by detector, with `scores` [N] and `positive` bool [N].
        kind: the name of the positive samples, such as "poisoned".
    """
    panels = [_panel(name, arrays, kind) for name, arrays in found.items()]
    return save_panels(path, panels, min(3, len(found)), 2.3)


def _panel(name: str, arrays: Arrays, kind: str) -> Panel:
    scores = np.nan_to_num(np.asarray(arrays["scores"], float), neginf=0.0, posinf=0.0)
    low, high = np.quantile(scores, (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    sorts = (("clean", ~arrays["positive"], BEFORE), (kind, arrays["positive"], POISONED))
    marks = [
        Mark(
            (_shares(np.clip(scores[mask], low, edges[-1]), edges), edges),
            {"fill": True, "color": colour, "alpha": 0.55, "label": label},
            "stairs",
        )
        for label, mask, colour in sorts
        if mask.any()
    ]
    options = {
        "title": short(name, 30),
        "xlabel": "score (high is suspicious)",
        "ylabel": "samples (%)",
    }
    return Panel(marks, options)


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return 100 * np.histogram(values, edges)[0] / max(len(values), 1)


def save_roc(path: Path, found: Mapping[str, Arrays]) -> Path | None:
    """Draw the ROC curves of detectors in one panel, with a logarithmic axis of the FPR.

    `found` is as in `save_detector_scores`. The axis begins at one false positive. A detector
    without positive or without clean samples has no curve.
    """
    curves = {name: roc(arrays["scores"], arrays["positive"]) for name, arrays in found.items()}
    known = {name: curve for name, curve in curves.items() if curve}
    if not known:
        return None
    colours = palette(found)
    lowest = 1 / max(2, *((~found[name]["positive"]).sum() for name in known))
    chance = np.geomspace(lowest, 1, 100)
    marks = [Mark((chance, chance), {"color": PALE, "label": "chance"})]
    for name, (false, true) in known.items():
        style = style_of(name, colours) | {"label": name, "drawstyle": "steps-post"}
        marks.append(Mark((np.maximum(false, lowest), true), style))
    options = {
        "xlabel": "false-positive rate",
        "ylabel": "true-positive rate",
        "xscale": "log",
        "xlim": (lowest, 1),
        "ylim": (0, 1.02),
    }
    return save_panels(path, [Panel(marks, options)], 1, 3.2)


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the false- and true-positive rates at every threshold, or None if one is undefined.

    Both begin at 0 and end at 1. Samples with equal scores are flagged together.
    """
    positive = np.asarray(positive, bool)
    if positive.all() or not positive.any():
        return None
    ranks = np.nan_to_num(np.asarray(scores, float), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = np.argsort(-ranks, kind="stable")
    hits = positive[order]
    last = np.append(np.diff(ranks[order]) != 0, True)  # the last sample of each score
    true, false = np.cumsum(hits)[last] / hits.sum(), np.cumsum(~hits)[last] / (~hits).sum()
    return np.insert(false, 0, 0.0), np.insert(true, 0, 0.0)


def save_extremes(path: Path, found: Mapping[str, Arrays]) -> Path | None:
    """Draw the images with the highest and the lowest scores of each detector, two rows for each.

    `found` has arrays by detector, with uint8 images `most` and `least` [n, H, W, C], if any.
    """
    rows = {
        f"{short(name, 18)}: {side}": drawable(arrays[side])
        for name, arrays in found.items()
        for side in ("most", "least")
        if side in arrays
    }
    return save_rows(path, rows, label_share=0.2) if rows else None


def save_class_scores(
    path: Path, title: str, found: Arrays, classes: Sequence[str], targets: Collection[int]
) -> Path | None:
    """Draw the score that a model detector gives each class as a bar, with targets starred.

    `targets` are the attacker's target classes.
    """
    order = np.sort((-found["scores"]).argsort(kind="stable")[:MOST])
    scores = np.nan_to_num(found["scores"][order], neginf=0.0, posinf=0.0)
    names = [classes[int(label)][:13] + " ★" * (label in targets) for label in order]
    hues = [POISONED if one else BEFORE for one in found["flagged"][order]]
    turned = {"rotation": 0 if len(order) <= 10 else 90}
    marks = [
        Mark((range(len(order)), scores, 0.62), {"color": hues}, "bar"),
        Mark((range(len(order)), names), turned, "set_xticks"),
        Mark((False,), {"axis": "x"}, "grid"),
    ]
    options = {"title": f"Class scores · {title}", "ylabel": "score (high is suspicious)"}
    return save_panels(path, [Panel(marks, options)], 1, 2.3)
