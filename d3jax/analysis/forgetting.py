"""A linear model of forgetting: how fast training on fresh images shrinks a trigger's direction.

The model is φ(x)ᵀw under squared loss. Gradient descent on data with the second moment Σ = E[φφᵀ]
moves the weights towards the optimum w* of these data. With e = w − w*, it does so as e_{n+1} = (I
− η_n Σ) e_n. The trigger moves features by d = E[φ(x + trigger) − φ(x)], so the remaining backdoor
is dᵀe. The part of d outside the range of Σ never decays. Inside it, each part decays like exp(−λ_i
Σ_n η_n).

Assumptions: the backdoored weights differ from w* along d, and the optimum is the same for all
updates. Drift acts only through Σ here, whereas in truth it also moves w*. Li et al. (arXiv
2206.04677) state that fine-tuning erases a backdoor; this derivation is d3jax's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def moment(features: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the second moment [D + 1, D + 1] of features [N, D] with a constant 1 appended.

    It is float64. The constant stands for the bias. `weights` [N] weigh the rows. The weights may
    be p (1 − p), where p is the probability of the target. The moment is then the curvature of
    softmax cross-entropy for the target's logit.
    """
    features = np.concatenate(
        [np.asarray(features, np.float64), np.ones((len(features), 1))], axis=1
    )
    weighted = features if weights is None else features * np.asarray(weights, np.float64)[:, None]
    return weighted.T @ features / len(features)


def spectrum(direction: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a second moment's eigenvalues, and a trigger direction's share on each eigenvector.

    The eigenvalues [D + 1] are sorted, largest first. The shares [D + 1] are parts of |d|² of a
    direction d [D].
    """
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
    """Return the share [T] of a backdoor, dᵀ(w − w*), that a linear model keeps after each update.

    Args:
        direction: d [D], not 0.
        seconds: the `moment` of each update's data.
        rates: learning rates [n] of an update's steps, the same in every update.
        momentum: the momentum, which begins at 0 in every update.
        weight_decay: coupled L2, which adds to every curvature.

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
    """Return the share of an error that heavy-ball gradient descent leaves along each curvature.

    The error belongs to a direction of the given `curvatures`. `rates` are the learning rates of
    the steps.
    """
    curvatures = np.asarray(curvatures, np.float64)
    error, speed = np.ones_like(curvatures), np.zeros_like(curvatures)
    with np.errstate(over="ignore", invalid="ignore"):
        for rate in np.asarray(rates, np.float64):
            speed = momentum * speed + curvatures * error
            error = error - rate * speed
    return error


def _with_bias(direction: np.ndarray) -> np.ndarray:
    return np.append(np.asarray(direction, np.float64), 0.0)
