"""Outliers among the norms of inverted triggers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

WORKS = 0.5
"""Share of the images that an inverted trigger must turn for its norm to say anything (ours)."""
FLOOR = 0.1
"""The least spread, as a share of the median (ours): an outlier is at least a fifth below it."""


class Detection(NamedTuple):
    """Neural Cleanse's outlier test of `norms` [L].

    `worked` [L] are those that count. `index` [L] is |norm − median| / spread, NaN where a norm
    does not count; the spread is 1.4826 · MAD, at least a share of the median. `flagged` [L] are
    those below the median with an index above 2. `anomaly` is the index of the smallest norm.
    """

    norms: Float64[np.ndarray, " L"]
    index: Float64[np.ndarray, " L"]
    flagged: Bool[np.ndarray, " L"]
    worked: Bool[np.ndarray, " L"]
    median: float
    spread: float
    anomaly: float


def detect(
    norms: Any, success: Any = None, median: str = "lower", floor: float = FLOOR
) -> Detection:
    """Return which of the `norms` [L] are outliers on the small side.

    A norm counts where it is a number and its trigger turns at least `WORKS` of the images, by
    `success` [L] (None: all do). With fewer than three such norms nothing is flagged, and the
    anomaly is 0. `median` "lower" takes of an even number of values the lower middle one, as
    PyTorch does and the codes of the field on it; "mean" the mean of both, as NumPy.

    Deviations from Neural Cleanse: `success`, and the `floor` of the spread; with 0 its index is
    infinite where most norms are equal.
    """
    norms = np.asarray(norms, np.float64)
    worked = np.isfinite(norms)
    if success is not None:
        worked &= np.asarray(success) >= WORKS
    nothing = np.full(norms.shape, np.nan)
    if worked.sum() < 3:
        return Detection(norms, nothing, worked & False, worked, np.nan, np.nan, 0.0)

    def middle_of(values):
        return float(np.quantile(values, 0.5, method="lower" if median == "lower" else "linear"))

    middle = middle_of(norms[worked])
    gaps = np.abs(norms - middle)
    spread = max(1.4826 * middle_of(gaps[worked]), floor * middle)
    apart = np.divide(gaps, spread, out=np.where(gaps > 0, np.inf, 0.0), where=spread > 0)
    index = np.where(worked, apart, np.nan)
    flagged = worked & (norms < middle) & (apart > 2)
    smallest = int(np.where(worked, norms, np.inf).argmin())
    return Detection(norms, index, flagged, worked, middle, spread, float(index[smallest]))
