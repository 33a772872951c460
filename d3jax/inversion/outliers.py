"""Outliers among the norms of inverted triggers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64


class Detection(NamedTuple):
    """Neural Cleanse's outlier test of `norms` [L]: `index` [L] is |norm − median| / spread with spread 1.4826 · MAD, `flagged` [L]
    are those below the median with more than 2, `anomaly` is the index of the smallest norm."""

    norms: Float64[np.ndarray, " L"]
    index: Float64[np.ndarray, " L"]
    flagged: Bool[np.ndarray, " L"]
    median: float
    spread: float
    anomaly: float


def detect(norms: Any, median: str = "lower") -> Detection:
    """Which of the `norms` [L] are outliers on the small side. Three are the least that can have one.

    `median` "lower" takes of an even number of values the lower middle one, as PyTorch does and the codes of the field on it;
    "mean" the mean of both, as NumPy. Where most norms are equal (MAD 0) any other has an infinite index.
    """
    norms = np.asarray(norms, np.float64)

    def middle_of(values):
        return float(np.quantile(values, 0.5, method="lower" if median == "lower" else "linear"))

    middle = middle_of(norms)
    gaps = np.abs(norms - middle)
    spread = 1.4826 * middle_of(gaps)
    index = np.divide(gaps, spread, out=np.where(gaps > 0, np.inf, 0.0), where=spread > 0)
    return Detection(
        norms, index, (norms < middle) & (index > 2), middle, spread, float(index[norms.argmin()])
    )
