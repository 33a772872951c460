"""The medcouple, the adjusted outlyingness, and a threshold from the lower half of some losses.

The medcouple (Brys, Hubert & Struyf 2004) measures the skewness of numbers, in [−1, 1]. The
adjusted outlyingness (Hubert & Van der Veeken 2008) uses it for whiskers of unequal length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def medcouple(values: Float[jax.Array, " n"]) -> Float[jax.Array, ""]:
    """Return the medcouple of numbers: the median of ((b − m) − (m − a)) / (b − a).

    m is their median, and the pairs are all a ≤ m ≤ b. For numbers that are equal to the median,
    the kernel is the sign of their place in the order. It takes n² memory.
    """
    values = jnp.sort(values)
    count, places = len(values), jnp.arange(len(values))
    z = values - (values[(count - 1) // 2] + values[count // 2]) / 2
    upper, lower, ties = z[:, None], z[None], z == 0
    apart = upper - lower
    kernel = (upper + lower) / jnp.where(apart > 0, apart, 1)
    signs = jnp.sign(places[:, None] + places[None] - 2 * ties.argmax() - ties.sum() + 1)
    kernel = jnp.where(ties[:, None] & ties[None], signs, kernel)
    counted = (upper >= 0) & (lower <= 0)
    ordered = jnp.sort(jnp.where(counted, kernel, jnp.inf), axis=None)
    pairs = counted.sum()
    return (ordered[(pairs - 1) // 2] + ordered[pairs // 2]) / 2


def whiskers(values: Float[jax.Array, " n"]) -> tuple[jax.Array, jax.Array]:
    """Return the whiskers of the adjusted boxplot of numbers.

    They are q₁ − 1.5 · e^(a·mc) · IQR and q₃ + 1.5 · e^(b·mc) · IQR for the medcouple mc, with
    (a, b) = (−4, 3) if mc > 0, else (−3, 4).
    """
    skew, (low, high) = medcouple(values), jnp.quantile(values, jnp.array([0.25, 0.75]))
    right = skew > 0
    length = 1.5 * (high - low)
    below = jnp.exp(jnp.where(right, -4, -3) * skew) * length
    return low - below, high + jnp.exp(jnp.where(right, 3, 4) * skew) * length


def adjusted_outlyingness(values: Float[jax.Array, " n"]) -> Float[jax.Array, " n"]:
    """Return the adjusted outlyingness of numbers, which is 1 at the whiskers w₁ and w₂.

    It is (s − m) / (w₂ − m) above the median m, and (m − s) / (m − w₁) below. m is the lower of two
    middle values.
    """
    median = jnp.sort(values)[(len(values) - 1) // 2]
    first, second = whiskers(values)
    above = values > median
    scale = jnp.where(above, second - median, median - first)
    return jnp.abs(values - median) / jnp.maximum(scale, 1e-12)


def upper_threshold(
    losses: Float[np.ndarray, " N"], rule: str = "published", density: float = 1e-6
) -> float:
    """Return the threshold above which losses are unusually high, from their lower half.

    A normal distribution with the mean μ and variance σ² + 1e-6 is fitted to the losses up to the
    lower median. With rule "density", its density is `density` at the threshold, which is

        μ + σ √(−2 ln(density · σ √(2π)))

    With "published", it is μ + σ √(−2 ln(density) · σ √(2π)), as in published code. That one is not
    proportional to the unit of the losses.
    """
    losses = np.asarray(losses, np.float64)
    lower = losses[losses <= np.quantile(losses, 0.5, method="lower")]
    spread = float(np.sqrt(lower.var() + 1e-6))
    unit = spread * np.sqrt(2 * np.pi)
    exact = max(0.0, -2 * np.log(density * unit))
    root = exact if rule == "density" else -2 * np.log(density) * unit
    return float(lower.mean() + spread * np.sqrt(root))
