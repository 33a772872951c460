"""What a linear model says of forgetting: how fast training on fresh images wears a trigger's direction down.

For a linear model φ(x)ᵀw under squared loss, gradient descent on data with the second moment Σ = E[φφᵀ] moves the weights towards the
optimum w* of these data as e_{n+1} = (I − η_n Σ) e_n, e = w − w*. The trigger moves features by d = E[φ(x + trigger) − φ(x)], so what is left of the backdoor is
dᵀe: what of d lies outside the range of Σ never decays, what lies inside decays like exp(−λ_i Σ_n η_n). The backdoored weights are
taken to differ from w* along d, and the optimum to be the same for all updates: drift acts through Σ alone here, where it moves w* too. (Li et al., arXiv 2206.04677, state that fine-tuning erases a backdoor; this derivation is ours.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def moment(features: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The second moment [D + 1, D + 1] float64 of features [N, D] and a constant 1, which is the bias's; `weights` [N] weigh the rows.

    With p (1 − p) for weights, p the probability of the target, it is the curvature that softmax cross-entropy has for the target's logit.
    """
    features = np.concatenate(
        [np.asarray(features, np.float64), np.ones((len(features), 1))], axis=1
    )
    weighted = features if weights is None else features * np.asarray(weights, np.float64)[:, None]
    return weighted.T @ features / len(features)


def spectrum(direction: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D + 1] of a `moment`, largest first, and the share of |d|² of a direction [D] that lies along each eigenvector."""
    values, vectors = np.linalg.eigh(second)
    along = (vectors.T @ _with_bias(direction)) ** 2
    return np.maximum(values, 0)[::-1], (along / along.sum())[::-1]


def retained(
    direction: np.ndarray,
    seconds: Sequence[np.ndarray],
    rates: np.ndarray,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """What is left of dᵀ(w − w*) after each update, [T], as a share of what there was at first.

    Args:
        direction: d [D], not 0.
        seconds: the `moment` of each update's data.
        rates: [n] learning rates of an update's steps, the same in every update; momentum begins at 0 in each.

    Values above 1 or below −1 mean that squared loss would diverge at these rates.
    """
    d = _with_bias(direction)
    left, e = [], d.copy()
    for second in seconds:
        values, vectors = np.linalg.eigh(second)
        e = vectors @ (
            decay(np.maximum(values, 0) + weight_decay, rates, momentum) * (vectors.T @ e)
        )
        left.append(float(d @ e / (d @ d)))
    return np.array(left)


def decay(curvatures: np.ndarray, rates: np.ndarray, momentum: float = 0.0) -> np.ndarray:
    """What heavy-ball gradient descent leaves of an error along each direction of the given curvatures, after steps at these rates."""
    curvatures = np.asarray(curvatures, np.float64)
    error, speed = np.ones_like(curvatures), np.zeros_like(curvatures)
    with np.errstate(over="ignore", invalid="ignore"):
        for rate in np.asarray(rates, np.float64):
            speed = momentum * speed + curvatures * error
            error = error - rate * speed
    return error


def _with_bias(direction: np.ndarray) -> np.ndarray:
    return np.append(np.asarray(direction, np.float64), 0.0)
