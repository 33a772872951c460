"""Figures with rows of test images (clean, triggered and their difference), pixel by pixel."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .common import DPI, drawing


def save_samples(
    path: Path, clean: np.ndarray, triggered: np.ndarray | None, *, label_share: float
) -> Path:
    """Draw rows of clean images, triggered images and ten times their absolute difference.

    Args:
        clean: uint8 [n, H, W, C]; channel counts other than 1 and 3 are drawn as their mean.
        triggered: the same images with the trigger; None if there is no trigger.
        label_share: see `save_rows`.
    """
    rows = {"clean": drawable(clean)}
    if triggered is not None:
        change = np.clip(10 * difference(triggered, clean), 0, 255).astype(np.uint8)
        rows |= {"triggered": drawable(triggered), "difference ×10": change}
    return save_rows(path, rows, label_share=label_share)


def difference(images: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return the absolute difference of the pixels of two sets of images, as int16.

    Images with other than 1 or 3 channels are compared after `drawable`.
    """
    return np.abs(drawable(images).astype(np.int16) - drawable(clean).astype(np.int16))


def drawable(images: np.ndarray) -> np.ndarray:
    """Return images [n, H, W, C] unchanged for 1 or 3 channels, else the mean of their channels."""
    mean = images.mean(-1, keepdims=True).astype(images.dtype)
    return images if images.shape[3] in (1, 3) else mean


def save_rows(path: Path, rows: Mapping[str, np.ndarray], *, label_share: float) -> Path:
    """Draw rows of uint8 images [n, H, W, 1 or 3], with the name of each row on its left.

    The names fill the left `label_share` of the width, and the columns share the rest equally. The
    page can therefore align a table below the figure.
    """
    zoom = max(1, 160 // next(iter(rows.values())).shape[1])  # makes the gap finer than a pixel
    strips = [images.repeat(zoom, axis=1).repeat(zoom, axis=2) for images in rows.values()]
    gap = max(1, round(0.04 * strips[0].shape[1]))
    margin = ((0, 0), (gap, gap), (gap, gap), (0, 0))
    padded = [np.pad(images, margin, constant_values=255) for images in strips]
    picture = np.concatenate([np.concatenate(list(images), axis=1) for images in padded])
    height, width = picture.shape[0], round(picture.shape[1] / (1 - label_share))
    size = picture.shape[1] / strips[0].shape[0] / 18  # font size, which grows with the images
    place = {"x": label_share - 0.3 * size / width, "ha": "right", "va": "center", "fontsize": size}
    with drawing(path, (width / DPI, height / DPI)) as figure:
        whole = np.broadcast_to(picture, (*picture.shape[:2], 3))
        figure.figimage(whole, xo=width - picture.shape[1])  # without resampling
        for i, label in enumerate(rows):
            figure.text(y=1 - (i + 0.5) / len(rows), s=label, **place)
    return path
