"""Neural Cleanse's outlier test on the norms of inverted triggers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

WORKS = 0.5
"""The least success rate at which an inverted trigger's norm counts (d3jax's addition)."""
THRESHOLD = 2.0
"""The index above which a norm below the median is an outlier."""
FLOOR = 0.1
"""The least spread, as a share of the median (d3jax's addition).

An outlier is therefore at least a fifth below the median.
"""


class Detection(NamedTuple):
    """The result of Neural Cleanse's outlier test on the `norms` [L] of inverted triggers.

    `worked` [L] marks the norms that count. `index` [L] is |norm − median| / spread, NaN where a
    norm does not count. The spread is 1.4826 · MAD, but at least a share of the median. `flagged`
    [L] marks the norms below the median with an index above `THRESHOLD`. `anomaly` is the index of
    the smallest norm.
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
    """Return a `Detection`: which norms [L] of inverted triggers are unusually small.

    A norm counts where it is finite and its trigger has a success rate of at least `WORKS`, by
    `success` [L] (None: all count). With fewer than three such norms nothing is flagged, and the
    anomaly is 0. `median` chooses the median of an even number of values. "lower" takes the lower
    middle value, as PyTorch does and published code that uses it. "mean" takes the mean of both, as
    NumPy does.

    Deviations from Neural Cleanse: `success`, and the `floor` of the spread. With floor 0, the
    index is infinite where most norms are equal.
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
    flagged = worked & (norms < middle) & (apart > THRESHOLD)
    smallest = int(np.where(worked, norms, np.inf).argmin())
    return Detection(norms, index, flagged, worked, middle, spread, float(index[smallest]))
