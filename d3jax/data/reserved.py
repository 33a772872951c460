"""Which training images a defender holds, and the stratified draw that splits data sets too."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from ..config.recipes import ReservedConfig
from ..core.errors import DataError
from ..core.types import Split


def reserve(
    split: Split, config: ReservedConfig, seed: int, num_classes: int
) -> Int[np.ndarray, " R"]:
    """Sorted indices [R] into `split` of the images a post-training defence may use.

    R is `config.count`, or `config.fraction` of the split, rounded, where `count` is 0. The same seed gives the same
    indices, and a smaller unstratified draw is part of a larger one. Raises `DataError` when R is 0 or more than there are.
    """
    labels = np.asarray(split.labels)
    total = config.count or round(config.fraction * len(labels))
    if total > len(labels):
        raise DataError(
            f"reserved.count: {total} images asked for, the training set has {len(labels)}"
        )
    if total == 0:
        raise DataError(
            f"reserved.fraction: {config.fraction} of {len(labels)} training images is none, want at least one"
        )
    rng = np.random.default_rng(seed)
    if config.stratified:
        return draw_stratified(labels, total, num_classes, rng)
    return np.sort(rng.permutation(len(labels))[:total])


def draw_stratified(
    labels: np.ndarray, total: int, num_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """`total` sorted indices into `labels [N]`, the same share of each class to within one image (largest remainder)."""
    shares = total * np.bincount(labels, minlength=num_classes)
    counts = shares // len(labels)
    # Where `shares` divides, no image is left over for the class: so a class never gives more than it has.
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
    """Draws `fraction` of each class as the test set; the rest, in the old order, is the training set."""
    test = np.zeros(len(labels), bool)
    test[
        draw_stratified(
            labels, round(fraction * len(labels)), num_classes, np.random.default_rng(seed)
        )
    ] = True
    return (images[~test], labels[~test]), (images[test], labels[test])
