"""Scatter plots of each model's penultimate features by PCA and t-SNE, for the report page."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .common import WIDTH, Arrays, Mark, Panel, save_panels, short

METHODS = {"pca": "PCA", "tsne": "t-SNE"}


def save_features(path: Path, features: Mapping[str, Arrays], classes: int) -> Path | None:
    """Draw scatter plots of features: clean images in class colours, triggered images in black.

    Args:
        features: arrays by model: points `pca` and `tsne` [N + M, 2], clean images first, and
            `labels` [N].
        classes: the number of classes.
    """
    panels = [
        _panel(found[method], found["labels"], classes, f"{short(name, 22)} · {title}")
        for method, title in METHODS.items()
        for name, found in features.items()
    ]
    return save_panels(path, panels, len(features), 2.55, max(WIDTH, 2.3 * len(features)))


def _panel(points: np.ndarray, labels: np.ndarray, classes: int, title: str) -> Panel:
    count, shades = (20, "tab20") if classes > 10 else (10, "tab10")
    style = {"c": labels % count, "cmap": shades, "vmin": 0, "vmax": count - 1, "alpha": 0.7}
    black = {"c": "black", "s": 6, "marker": "x", "linewidths": 0.6}
    marks = [
        Mark(tuple(points[: len(labels)].T), style | {"s": 5, "linewidths": 0}, "scatter"),
        Mark(tuple(points[len(labels) :].T), black, "scatter"),
    ]
    return Panel(marks, {"title": title}, bare=True, below=0.05)
