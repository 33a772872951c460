"""Features, scores and flags by class, shared by the detectors of poisoned samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...analysis.features import penultimate
from ...core.types import Model, Scored, Split, Variables


def features_by_class(
    model: Model, variables: Variables, samples: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each label the row numbers [n] and penultimate features [n, D] of samples."""
    features = penultimate(model, variables, samples.images).astype(np.float64)
    labels = np.asarray(samples.labels)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        yield rows, features[rows]


def score_by_class(
    model: Model,
    variables: Variables,
    samples: Split,
    judge: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Scored:
    """Return scores and flags of training samples (`Scored`), judged class by class by features.

    `judge(features [n, D]) -> (scores [n], flagged [n] bool)` computes them from the penultimate
    features of one class.
    """
    size = len(samples.labels)
    scores, flagged = np.zeros(size), np.zeros(size, bool)
    for rows, features in features_by_class(model, variables, samples):
        scores[rows], flagged[rows] = judge(features)
    return Scored(scores.astype(np.float32), flagged)
