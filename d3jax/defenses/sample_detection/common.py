"""Features, scores, flags and statistics by class, for the detectors of poisoned samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Float64, Integer

from ...analysis.features import penultimate
from ...core.types import Model, Scored, Split, Variables


def features_by_class(
    model: Model, variables: Variables, samples: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each label the row numbers [n] and penultimate features [n, D] of samples."""
    features = penultimate(model, variables, samples.images).astype(np.float64)
    for rows in by_label(np.asarray(samples.labels)):
        yield rows, features[rows]


def by_label(labels: Integer[np.ndarray, " n"]) -> list[Integer[np.ndarray, " m"]]:
    """Return the row numbers of each label, in order of the labels that there are."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def deviation_index(values: Float[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    """Return |value − median| / (1.4826 · MAD) of each value; all 0 if the MAD is 0."""
    apart = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(apart)
    return apart / spread if spread > 0 else np.zeros(len(values))


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
