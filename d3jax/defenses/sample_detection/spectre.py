"""SPECTRE, a detector of poisoned samples by robust statistics (Hayase et al., ICML 2021).

Source: arXiv 2104.11315. Robust covariances whiten the features of a class, so that clean samples
have a covariance near the identity matrix. Quantum entropy scores then rank the samples by all
directions in which the covariance is larger.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float64

from ...config.fields import check_fields, option
from ...core.types import DataInfo, Model, SampleDetector, Scored, Split, Variables
from ...training.loop import Hooks
from .common import score_by_class

STEPS = 20
"""The most iterations of the robust covariance."""
FLOOR = 1e-9
"""The least variance of a direction, as a share of the largest."""


@dataclasses.dataclass(frozen=True)
class SPECTREConfig:
    """Settings of SPECTRE, which flags a fixed number of samples in every class.

    The method needs the share of poisoned samples, which a defender has to assume. The rule flags
    as many samples in a clean class. The defaults are BackdoorBench's, except for the exponential.
    """

    poison_rate: float = option(
        0.01,
        "assumed share of the training set that is poisoned, all in one class",
        above=0,
        high=1,
    )
    alpha: float = option(4.0, "α, sharpness of the quantum entropy scores", low=0)
    exponential: Literal["matrix", "elementwise"] = option(
        "matrix",
        "exponential in the scores: of the matrix, as in the paper, or of every element, as in "
        "BackdoorBench",
    )
    dimensions: tuple[int, ...] = option(
        (1, 4, 9, 16, 25, 36, 49, 64),
        "numbers of principal components to choose from",
        low=1,
        filled=True,
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build SPECTRE, a detector of poisoned samples, for the data set that `info` describes."""
        return make_spectre(self, info)


def expected_poison(total: int, size: int, rate: float) -> int:
    """Return the number ε of poisoned samples to expect in a class of `size`, of `total` samples.

    It is at most a third of the class, or a tenth of a class with fewer than 500 samples.
    """
    return max(1, int(min(rate * total, (0.1 if size < 500 else 0.33) * size)))


def principal(features: Float[np.ndarray, "n D"], count: int) -> Float64[np.ndarray, "n k"]:
    """Return the first `count` principal components [n, k] of the centred features."""
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:count].T


class Whitening(NamedTuple):
    """A linear map to features of mean 0 and covariance I: (x − mean) · matrix."""

    mean: Float64[np.ndarray, " k"]
    matrix: Float64[np.ndarray, "k k"]

    def __call__(self, features: Float[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """Return the whitened features [n, k]."""
        return (features - self.mean) @ self.matrix


def whitening(features: Float[np.ndarray, "n k"]) -> Whitening:
    """Return the whitening of the mean and covariance of features [n, k]."""
    mean = features.mean(0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(features, rowvar=False, bias=True)))
    values = np.maximum(values, max(FLOOR * values[-1], np.finfo(float).tiny))
    return Whitening(mean, vectors / np.sqrt(values) @ vectors.T)


def robust_whitening(features: Float[np.ndarray, "n k"], dropped: int) -> Whitening:
    """Return the whitening of features [n, k] less the `dropped` ones that are furthest away.

    Those are the rows of the largest norm after whitening, found by iteration.
    """
    found = whitening(features)
    kept = np.arange(0)
    for _ in range(STEPS):
        norms = (found(features) ** 2).sum(1)
        before, kept = kept, np.sort(np.argsort(norms, kind="stable")[: len(features) - dropped])
        if np.array_equal(before, kept):
            break
        found = whitening(features[kept])
    return found


class Entropies(NamedTuple):
    """Quantum entropy scores [n] of whitened features, and their mean ⟨Σ, M⟩."""

    scores: Float64[np.ndarray, " n"]
    mean: float


def quantum_entropy(
    whitened: Float[np.ndarray, "n k"], alpha: float, exponential: str = "matrix"
) -> Entropies:
    """Return the scores xᵀMx of whitened features [n, k], with M of trace 1.

    M ∝ exp(α · (Σ − I) / (‖Σ‖₂ − 1)) for the covariance Σ of the features. With α 0, a score is the
    squared norm divided by k. If ‖Σ‖₂ is 1, M is I / k.
    """
    sigma = np.atleast_2d(whitened.T @ whitened / len(whitened))
    excess = sigma - np.eye(len(sigma))
    values, vectors = np.linalg.eigh(excess)
    top = values[-1]
    scale = alpha / top if top > 1e-9 else 0.0
    if exponential == "matrix":
        weights = vectors * np.exp(scale * (values - top)) @ vectors.T
    else:
        weights = np.exp(scale * (excess - excess.max()))
    weights /= np.trace(weights)
    return Entropies(
        np.einsum("ni,ij,nj->n", whitened, weights, whitened), float((sigma * weights).sum())
    )


def scores_of_class(
    features: Float[np.ndarray, "n D"], poison: int, config: SPECTREConfig
) -> Float64[np.ndarray, " n"]:
    """Return SPECTRE's scores [n] of the features of one class, for `poison` expected samples.

    Every number of principal components gives a ranking. The ranking counts whose highest samples,
    left out, leave whitened features with the largest mean score.
    """
    most = max(1, min(max(config.dimensions), features.shape[1], len(features) - 1))
    wide = principal(features, most)
    best, found = -np.inf, np.zeros(len(features))
    for count in sorted({min(one, most) for one in config.dimensions}):
        narrow = wide[:, :count]
        whitened = robust_whitening(narrow, min(2 * poison, len(narrow) // 2))(narrow)
        scores = quantum_entropy(whitened, config.alpha, config.exponential).scores
        kept = np.argsort(scores, kind="stable")[: max(2, len(scores) - round(1.5 * poison))]
        judged = quantum_entropy(whitening(wide[kept])(wide), config.alpha, config.exponential)
        if judged.mean > best:
            best, found = judged.mean, scores
    return found


def make_spectre(config: SPECTREConfig, info: DataInfo) -> SampleDetector:
    """Return SPECTRE, a `SampleDetector` that flags the 1.5 · ε highest scores of every class.

    ε is the number of poisoned samples to expect. The scores are those of `scores_of_class` for
    penultimate features.

    Deviation: the paper's robust covariance is an iterative filter with constants of its own. Here
    2 · ε samples of the largest norm are left out, again and again until the same ones are.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split | None = None,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        total = len(samples.labels)

        def judge(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            poison = expected_poison(total, len(features), config.poison_rate)
            scores = scores_of_class(features, poison, config)
            flagged = np.zeros(len(scores), bool)
            flagged[np.argsort(scores, kind="stable")[len(scores) - round(1.5 * poison) :]] = True
            return scores, flagged

        return score_by_class(model, variables, samples, judge)

    return SampleDetector(score)
