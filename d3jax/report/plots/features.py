"""Penultimate features of every model as points: PCA above, t-SNE below."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .common import WIDTH, Arrays, Mark, Panel, save_panels, short

METHODS = {"pca": "PCA", "tsne": "t-SNE"}


def save_features(path: Path, features: Mapping[str, Arrays], classes: int) -> Path | None:
    """Draw clean images in the colours of their classes and triggered ones in black.

    Args:
        features: by model, points `pca` and `tsne` [N + M, 2], clean first, and `labels` [N].
        classes: how many there are.
    """
    panels = [
        _panel(found[method], found["labels"], classes, f"{short(name, 22)} · {title}")
        for method, title in METHODS.items()
        for name, found in features.items()
    ]
    width = max(WIDTH, 2.3 * len(features))
    return save_panels(path, panels, len(features), 2.55, width)


def _panel(points: np.ndarray, labels: np.ndarray, classes: int, title: str) -> Panel:
    shades = {"cmap": "tab20", "vmin": 0, "vmax": 19} if classes > 10 else {"cmap": "tab10", "vmin": 0, "vmax": 9}  # fmt: skip
    clean, triggered = np.split(points, [len(labels)])
    style = shades | {"c": labels % (shades["vmax"] + 1), "s": 5, "alpha": 0.7, "linewidths": 0}
    black = {"c": "black", "s": 6, "marker": "x", "linewidths": 0.6}
    marks = [Mark(tuple(clean.T), style, "scatter"), Mark(tuple(triggered.T), black, "scatter")]
    return Panel(marks, {"title": title, "xticks": [], "yticks": []}, bare=True)
