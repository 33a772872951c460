"""What detectors of poisoned samples share: features by class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...analysis.features import penultimate
from ...core.types import Model, Split, Variables


def features_by_class(
    model: Model, variables: Variables, samples: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows [n] of each label and their penultimate features [n, D], float64."""
    features = penultimate(model, variables, samples.images).astype(np.float64)
    labels = np.asarray(samples.labels)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        yield rows, features[rows]


def percentile_flags(scores: np.ndarray, percentile: float) -> np.ndarray:
    """Return which scores [n] lie above their percentile."""
    return scores > np.percentile(scores, percentile)
