"""Two groups of gradients in a class: their spread, which classes are suspected, and growth.

The formulas of AGPD (`agpd`), on the mean gradients [n, C] of the samples of one class.

Three details: a gap leaves out the seed's own term but divides by √n, the outlier index adds 1e-6
to the median absolute deviation, and the histograms have 100 edges, and so 99 bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

OUTLIER = np.exp(2)
"""The index above which the gap of a class is an outlier."""
WINDOW, BINS = 10, np.linspace(0, 1, 100)
"""The number of rounds in a window of the stopping rule, and the edges of its histograms."""


class Spread(NamedTuple):
    """The spread of the gradients of one class at one layer: seed, gap and rates.

    `seed` is the row of the seed, and `rates` [n] are those of `rates_of` with the seed alone as
    the poisoned group.
    """

    seed: int
    gap: float
    rates: Float[np.ndarray, " n"]


def cosine(
    rows: Float[np.ndarray, "n C"], other: Float[np.ndarray, " C"]
) -> Float[np.ndarray, " n"]:
    """Return the cosines [n] of the angles between rows [n, C] and one vector [C].

    The cosine with a vector of zeros is 0.
    """
    size = np.linalg.norm(rows, axis=1) * np.linalg.norm(other)
    return np.clip(rows @ other / np.maximum(size, 1e-30), -1, 1)


def rates_of(
    gradients: Float[np.ndarray, "n C"],
    poisoned: Float[np.ndarray, " C"],
    clean: Float[np.ndarray, " C"],
) -> Float[np.ndarray, " n"]:
    """Return the rates (1 − cos_p) / ((1 − cos_p) + (1 − cos_c)) [n] of samples.

    cos_p and cos_c are the cosines with the mean gradients of the poisoned and the clean group. A
    rate is 0 at the poisoned and 1 at the clean group, and 1/2 if both groups are equally near.
    """
    far, near = 1 - cosine(gradients, poisoned), 1 - cosine(gradients, clean)
    whole = far + near
    return np.where(whole > 0, far / np.where(whole > 0, whole, 1), 0.5)


def spread_of(gradients: Float[np.ndarray, "n C"], clean: Float[np.ndarray, " C"]) -> Spread:
    """Return the `Spread` of the gradients [n, C] of a class, given their clean mean [C]."""
    cosines = cosine(gradients, clean)
    seed = int(cosines.argmin())
    apart = np.delete(cosines - cosine(gradients, gradients[seed]), seed)
    gap = float(np.linalg.norm(apart) / np.sqrt(len(gradients)))
    return Spread(seed, gap, rates_of(gradients, gradients[seed], clean))


def outliers(gaps: Float[np.ndarray, "*L K"]) -> Float[np.ndarray, "*L K"]:
    """Return the one-sided outlier index of the gap of each of K classes; 0 below the median."""
    apart = gaps - np.median(gaps, -1, keepdims=True)
    spread = np.median(np.abs(apart), -1, keepdims=True)
    return np.maximum(apart, 0) / 1.4826 / (spread + 1e-6)


def suspected(gaps: Float[np.ndarray, "L K"], least: float) -> tuple[int, Bool[np.ndarray, " K"]]:
    """Return the layer to use and the mask [K] of the suspected classes, from gaps [L, K].

    If an index is at least e², the layer is that of the largest index, and classes with an index
    above e² are suspected. Otherwise it is the one of the fourth to second last layers in which
    most classes have a gap above `least`, and these are suspected.
    """
    index = outliers(gaps)
    if index.max() >= OUTLIER:
        layer = int(index.max(1).argmax())
        return layer, index[layer] > OUTLIER
    late = np.arange(len(gaps))[-4:-1] if len(gaps) > 1 else np.arange(1)
    layer = int(late[(gaps[late] > least).sum(1).argmax()])
    return layer, gaps[layer] > least


def grow(
    gradients: Float[np.ndarray, "n C"], clean: Float[np.ndarray, " C"], seed: int, tau: float
) -> Bool[np.ndarray, " n"]:
    """Return the mask [n] of the poisoned samples of a class, grown from the row `seed`.

    In each round, the rates of the samples outside the group are scaled to [0, 1], and those up to
    τ join it, until none is left. `stop_of` finds the window of rounds in which the distributions
    of the rates change least. As in BackdoorBench, the round just before this window is left out
    too. The group is at least the seed.
    """
    size, changes, before = len(gradients), list[float](), np.empty(0)
    joined = np.full(size, size)  # the round in which a sample joins
    joined[seed] = 0
    while (joined == size).any() and size > 1:
        rest, number = np.flatnonzero(joined == size), len(changes) + 1
        rates = rates_of(gradients[rest], gradients[joined < size].mean(0), clean)
        scaled = (rates - rates.min()) / max(np.ptp(rates), 1e-30)
        joined[rest[scaled <= tau]] = number
        before, after = (before if number > 1 else rates), rates[scaled > tau]
        changes.append(change_of(before, after) if len(after) else 1.0)
        before = after
    return joined < max(1, stop_of(changes))


def change_of(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " m"]) -> float:
    """Return the Jensen–Shannon distance of the histograms of two sets of rates."""
    from scipy.spatial.distance import jensenshannon

    first, second = (np.histogram(one, BINS, density=True)[0] for one in (before, after))
    return float(jensenshannon(first, second))


def stop_of(changes: list[float]) -> int:
    """Return the first index of the window of ten values whose mean + 5 · std is the lowest.

    Fewer than ten values are one window.
    """
    width = min(WINDOW, len(changes))
    if not width:
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(np.array(changes), width)
    return int((windows.mean(1) + 5 * windows.std(1)).argmin())
