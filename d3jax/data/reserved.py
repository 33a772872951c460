"""The draw of a defender's reserved clean images, and the stratified split of data sets."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from ..config.recipes import ReservedConfig
from ..core.errors import DataError
from ..core.types import Split


def reserve(
    split: Split, config: ReservedConfig, seed: int, num_classes: int
) -> Int[np.ndarray, " R"]:
    """Draw a post-training defence's reserved clean images, as sorted indices [R] into `split`.

    R is `config.count`; where that is 0, it is `config.fraction` of the split, rounded. The same
    seed gives the same indices, and a smaller unstratified draw is part of a larger one. With
    `config.classes` or `config.imbalance`, R is divided over the classes accordingly. Raises
    `DataError` when R is 0 or exceeds the number of images, or a class has too few.
    """
    labels = np.asarray(split.labels)
    total = config.count or round(config.fraction * len(labels))
    if total > len(labels):
        raise DataError(
            f"reserved.count: {total} images asked for, the training set has {len(labels)}"
        )
    if total == 0:
        raise DataError(
            f"reserved.fraction: {config.fraction} of {len(labels)} training images is none, "
            "want at least one"
        )
    rng = np.random.default_rng(seed)
    if config.classes or config.imbalance < 1:
        return _draw_uneven(labels, total, config, num_classes, rng)
    if config.stratified:
        return draw_stratified(labels, total, num_classes, rng)
    return np.sort(rng.permutation(len(labels))[:total])


def _draw_uneven(
    labels: np.ndarray,
    total: int,
    config: ReservedConfig,
    num_classes: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw `total` sorted indices, of the classes and with the imbalance of a config."""
    classes = np.array(sorted(set(config.classes)) or range(num_classes))
    if classes[-1] >= num_classes:
        raise DataError(
            f"reserved.classes: {classes[-1]} is no class; the data set has {num_classes}, "
            f"0 to {num_classes - 1}"
        )
    there = np.bincount(labels, minlength=num_classes)[classes]
    weights = there * config.imbalance ** (np.arange(len(classes)) / max(1, len(classes) - 1))
    shares = total * weights / max(weights.sum(), 1)
    counts = np.floor(shares).astype(int)
    most = np.argsort(counts - shares, kind="stable")  # the largest remainders first
    counts[most[: total - counts.sum()]] += 1
    order = rng.permutation(len(labels))
    drawn = []
    for label, count, size in zip(classes, counts, there, strict=True):
        if count > size:
            raise DataError(
                f"reserved: {count} images of class {label} asked for, the training set has {size}"
            )
        drawn.append(order[labels[order] == label][:count])
    return np.sort(np.concatenate(drawn))


def draw_stratified(
    labels: np.ndarray, total: int, num_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw `total` sorted indices into `labels [N]` with the same share of each class.

    The shares are equal to within one image (largest remainder method).
    """
    shares = total * np.bincount(labels, minlength=num_classes)
    counts = shares // len(labels)
    # A class whose share is a whole number has remainder 0 and gets no extra image, so that no
    # class gives more than it has.
    by_remainder = np.argsort(-(shares % len(labels)), kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(drawn))


def split_by_class(
    images: np.ndarray, labels: np.ndarray, num_classes: int, *, fraction: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Split images and labels into a training set and a test set, class by class.

    A random `fraction` of each class is the test set. Both sets keep the order of the images.
    """
    test = np.zeros(len(labels), bool)
    test[
        draw_stratified(
            labels, round(fraction * len(labels)), num_classes, np.random.default_rng(seed)
        )
    ] = True
    return (images[~test], labels[~test]), (images[test], labels[test])
