"""Figures of training-time defences: learning curves, scores, and precision and recall."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.records import LogRecord
from .common import BEFORE, POISONED, Arrays, Mark, Palette, Panel, save_panels, short, style_of

CLEAN = BEFORE
HUES = {
    "entropy": "#0072b2",
    "cross_entropy": "#d55e00",
    "symmetric": "#009e73",
    "mixture": "#cc79a7",
}
OTHER = "#e69f00"
"""The colour of a score that only one method has; no method has two of these."""
AGAIN = ("rescored", "rescored_entropy")
"""The scores of a later stage, which have a figure of their own."""
LOWEST = 1e-4
"""Lower limit of the drawn scores; scores below it are drawn at it."""
LEARNED = {
    "ce": ("Cross-entropy", "nats", 1),
    "entropy": ("Entropy of the prediction", "nats", 1),
    "right": ("Accuracy on labels", "images (%)", 100),
}


def save_learning(path: Path, records: Sequence[LogRecord]) -> Path | None:
    """Draw how a training-time defence's first stage learns clean and poisoned images."""
    measured = [record for record in records if "clean_ce" in record]
    panels = [
        Panel(
            [
                *_dots(measured, f"clean_{name}", factor, color=CLEAN, label="clean"),
                *_dots(measured, f"poisoned_{name}", factor, color=POISONED, label="poisoned"),
            ],
            {"title": title, "xlabel": "step", "ylabel": unit, "ylim": (0, None)},
            whole=True,
        )
        for name, (title, unit, factor) in LEARNED.items()
    ]
    test = Panel(
        [
            *_dots(measured, "watch_acc", 100, color=CLEAN, label="ACC", linestyle="--"),
            *_dots(measured, "watch_asr", 100, color=POISONED, label="ASR", linestyle="--"),
        ],
        {"title": "Test images", "xlabel": "step", "ylabel": "share (%)", "ylim": (-3, 103)},
        whole=True,
        legend="best",
    )
    return save_panels(path, [*panels, test] if measured else [], 4, 2.5)


def _dots(records: Sequence[LogRecord], name: str, factor: float, **style: Any) -> list[Mark]:
    """Return a list with the line of one metric over log records; [] if no value is finite."""
    found = {record["step"]: factor * record.get(name, np.nan) for record in records}
    mark = Mark((list(found), list(found.values())), style | {"marker": "o", "markersize": 2.5})
    return [mark] if np.isfinite(mark.args[1]).any() else []


def save_scores(path: Path, found: Arrays) -> Path | None:
    """Draw histograms of a defence's image scores, and precision and recall of the lowest.

    Without poisoned images there are only histograms. None without a score.
    """
    names = scores_in(found)
    panels = [
        _histogram(found[name], found["flags"], plain(name), legend="best")
        for name in ("entropy", "cross_entropy")
        if name in names
    ]
    kinds = ("precision", "recall") if found["flags"].any() and names else ()
    panels += [_ranking(kind, names, found) for kind in kinds]
    return save_panels(path, panels, 3 if len(panels) == 3 else 2, 2.4)


def scores_in(found: Arrays) -> list[str]:
    """Return the names of the scores by which a defence ranks all images, in a fixed order."""
    known = [name.removeprefix("precision/") for name in found if name.startswith("precision/")]
    return sorted(set(known) - set(AGAIN), key=[*HUES, *sorted(known)].index)


def _ranking(kind: str, names: Sequence[str], found: Arrays) -> Panel:
    flags = found["flags"]
    share = 100 * np.arange(1, len(flags) + 1) / len(flags)
    marks = [
        Mark(
            (share, 100 * found[f"{kind}/{name}"]),
            {"color": HUES.get(name, OTHER), "linewidth": 1.5 + over, "label": plain(name)},
        )
        for over, name in zip(reversed(range(len(names))), names, strict=True)  # may coincide
    ]
    options = {
        "title": kind.capitalize(),
        "xlabel": "images with the lowest scores (%)",
        "ylabel": "%",
        "xlim": (0.1, 100),
        "ylim": (-3, 103),
        "xscale": "log",
    }
    of_all = [_level(flags.mean())] if kind == "precision" else []
    return Panel(marks + of_all, options, legend="best")


def save_rescored(path: Path, found: Mapping[str, Arrays]) -> Path | None:
    """Draw for each training-time defence a histogram of the score that chooses labels to keep."""
    panels = [
        _histogram(arrays["rescored"], arrays["flags"], short(name, 30))
        for name, arrays in found.items()
    ]
    return save_panels(path, panels, min(4, len(found)), 2.0)


def kept_clean(poisoned: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall [N] of clean images among the first k = 1 … N ranked images.

    Args:
        poisoned: the share [N] of poisoned images among the first k.
        flags: bool [N], True for poisoned images; at least one image must be clean.
    """
    clean = (1 - poisoned) * np.arange(1, len(flags) + 1)
    return 1 - poisoned, clean / np.sum(~flags)


def save_kept(path: Path, found: Mapping[str, Arrays], colours: Palette) -> Path | None:
    """Draw precision and recall of clean images over the share of images that keep their labels."""
    kept = [_kept(name, arrays, style_of(name, colours)) for name, arrays in found.items()]
    precision, recall = ([mark for pair in kept for mark in pair[i]] for i in (0, 1))
    precision += [_level(1 - arrays["flags"].mean()) for arrays in list(found.values())[:1]]
    x = {"xlabel": "images that keep their labels (%)", "ylabel": "%", "xlim": (0, 100)}
    panels = [
        Panel(precision, {"title": "Precision: share of kept that is clean", **x}),
        Panel(recall, {"title": "Recall: share of clean that is kept", "ylim": (-3, 103), **x}),
    ]
    return save_panels(path, panels if kept else [], 2, 2.8)


def _kept(name: str, arrays: Arrays, style: dict[str, Any]) -> list[list[Mark]]:
    """Return a defence's precision and recall curves of clean images that keep their labels."""
    clean, labelled = ~arrays["flags"], arrays["labelled"]
    share = 100 * np.arange(1, len(clean) + 1) / len(clean)
    dots = (clean[labelled].mean() if labelled.any() else np.nan, labelled[clean].mean())
    curves = kept_clean(arrays["precision/rescored"], arrays["flags"])
    line = style | {"linewidth": 1.2, "label": name}
    point = {"color": style["color"], "marker": "o", "markersize": 4}
    return [
        [Mark((share, 100 * curve), line), Mark((100 * labelled.mean(), 100 * dot), point)]
        for curve, dot in zip(curves, dots, strict=True)
    ]


def _level(share: float) -> Mark:
    return Mark((100 * share,), {"color": CLEAN, "linewidth": 0.8, "linestyle": ":"}, "axhline")


def _histogram(scores: np.ndarray, flags: np.ndarray, title: str, legend: str = "") -> Panel:
    """Return a panel with histograms of clean and poisoned images' scores, each adding to 100 %."""
    top = max(float(scores[np.isfinite(scores)].max(initial=0)), 10 * LOWEST)
    least = max(LOWEST, float(np.min(scores, initial=top)) / 2)
    edges = np.geomspace(least, top, 40)
    marks = [
        Mark(
            (_shares(np.clip(scores[mask].astype(float), least, top), edges), edges),
            {"fill": True, "color": colour, "alpha": 0.55, "label": kind},
            "stairs",
        )
        for kind, mask, colour in (("clean", ~flags, CLEAN), ("poisoned", flags, POISONED))
        if mask.any()
    ]
    options = {"title": title, "xscale": "log", "xlabel": "score (nats)", "ylabel": "images (%)"}
    return Panel(marks, options, legend=legend)


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return 100 * np.histogram(values, edges)[0] / len(values)


def plain(name: str) -> str:
    """Return a name with hyphens instead of underscores."""
    return name.replace("_", "-")
