"""The rows of the training set that DLP's stages 2 and 3 take: by ranked scores, class by class."""

from __future__ import annotations

import numpy as np

from ...metrics.sample_scores import ranking


def labelled_rows(
    scores: np.ndarray,
    ties: np.ndarray,
    labels: np.ndarray,
    suspects: np.ndarray,
    count: int,
    least: float,
) -> np.ndarray:
    """Return the sorted row numbers [count] of the images that keep their labels in DLP's stage 3.

    These are the images with the lowest scores, and among equal scores with the lowest `ties`.
    The lowest of every class are taken first: the share `least` of the class, or of the mean class
    if that is smaller. They are at least one image, or none where `least` is 0.

    Suspects never keep their labels, so a class whose images are all suspects has no row. There are
    fewer than `count` rows if fewer images are not suspects.
    """
    allowed = np.ones(len(scores), bool)
    allowed[suspects] = False
    order = ranking(scores, ties)
    order = order[allowed[order]]
    rank = np.full(len(scores), len(scores))  # ranks, within their class, of images taken first
    classes, sizes = np.unique(labels, return_counts=True)
    for label, size in zip(classes, np.minimum(sizes, sizes.mean()), strict=True):
        mine = order[labels[order] == label]
        first = mine[: max(1, int(least * size))] if least else mine[:0]
        rank[first] = np.arange(len(first))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def guessed_rows(
    scores: np.ndarray, ties: np.ndarray, labelled: np.ndarray, suspects: np.ndarray, dropped: int
) -> np.ndarray:
    """Return the sorted row numbers of the images that DLP's stage 3 trains on without labels.

    These are all rows except the `labelled` ones and a number of `dropped` ones. Suspects are
    dropped first, then the highest scores, and among equal scores the highest `ties`.
    """
    rows = np.setdiff1d(np.arange(len(scores)), labelled)
    order = rows[np.lexsort((ties[rows], scores[rows], np.isin(rows, suspects)))]
    return np.sort(order[: max(0, len(rows) - dropped)])


def first_of(ranked: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return for every class k the first `counts[k]` of the `ranked` row numbers with label k."""
    return np.concatenate(
        [ranked[labels[ranked] == label][:count] for label, count in enumerate(counts)]
    )
