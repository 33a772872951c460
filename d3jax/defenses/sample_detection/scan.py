"""SCAn, a detector of poisoned samples by a statistical test (Tang et al., USENIX Security 2021).

Source: arXiv 1908.00686. A feature is the sum of an identity u of its class and a variation e that
all classes share. The covariances S_u and S_e are estimated from clean images. A class whose
features are better explained by two identities than by one is contaminated.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float64, Integer

from ...analysis.features import penultimate
from ...config.fields import check_fields, option
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.types import DataInfo, Model, SampleDetector, Scored, Split, Variables
from ...training.loop import Hooks
from .common import by_label, deviation_index

CONTAMINATED = float(np.exp(2))
"""The index e² above which a class is contaminated, by the paper."""
STEPS = 100
"""The most iterations of the estimate and of the division, by the released program."""
CHANGE = 1e-5
"""The change of the covariances, as a share of their norms, at which the estimate ends."""


@dataclasses.dataclass(frozen=True)
class SCAnConfig:
    """Settings of SCAn, which flags one of the two groups of a contaminated class.

    The defaults are those of the paper. The features are penultimate ones.
    """

    index: float = option(
        CONTAMINATED, "index of a class above which it is contaminated (the paper's: e²)", above=0
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build SCAn, a detector of poisoned samples, for the data set that `info` describes."""
        return make_scan(self, info)


class Covariances(NamedTuple):
    """The covariances [D, D] of the identities of classes, and of the variation around them."""

    identity: Float64[np.ndarray, "D D"]
    variation: Float64[np.ndarray, "D D"]


class Division(NamedTuple):
    """The division of a class: rows in the `second` group, and the mean `gain` of log-likelihood.

    `nearness` [n] of each row to the second group is in [0, 1], and 1/2 half way between both.
    """

    second: Bool[np.ndarray, " n"]
    nearness: Float64[np.ndarray, " n"]
    gain: float


def covariance(values: Float[np.ndarray, "n D"]) -> Float64[np.ndarray, "D D"]:
    """Return the covariance [D, D] of rows [n, D], with the divisor n."""
    return np.atleast_2d(np.cov(values, rowvar=False, bias=True))


def estimate(features: Float[np.ndarray, "n D"], labels: Integer[np.ndarray, " n"]) -> Covariances:
    """Estimate the covariances of identity and variation from clean features, by EM.

    `features` [n, D] are those of clean images with `labels` [n], less their mean. The identity of
    a class with m rows is the posterior mean m · S_u (m · S_u + S_e)⁻¹ x̄. It begins as x̄.
    """
    groups = [features[rows] for rows in by_label(labels)]
    means = [group.mean(0) for group in groups]
    found = _covariances(groups, means)
    for _ in range(STEPS):
        identities = [
            identity_of(len(group), mean, found) for group, mean in zip(groups, means, strict=True)
        ]
        before, found = found, _covariances(groups, identities)
        moved = sum(np.linalg.norm(a - b) for a, b in zip(found, before, strict=True))
        if moved < CHANGE * sum(np.linalg.norm(one) for one in before):
            break
    return found


def identity_of(
    count: int, mean: Float[np.ndarray, " D"], found: Covariances
) -> Float64[np.ndarray, " D"]:
    """Return the posterior mean [D] of the identity of `count` rows with this mean."""
    total = count * found.identity + found.variation
    return count * found.identity @ np.linalg.pinv(total, hermitian=True) @ mean


def _covariances(groups: list[np.ndarray], identities: list[np.ndarray]) -> Covariances:
    """Return the covariances over samples of their identities, and of what remains."""
    pairs = list(zip(groups, identities, strict=True))
    repeated = np.concatenate([np.tile(one, (len(group), 1)) for group, one in pairs])
    return Covariances(
        covariance(repeated), covariance(np.concatenate([group - one for group, one in pairs]))
    )


def divide(
    features: Float[np.ndarray, "n D"], found: Covariances, generator: np.random.Generator
) -> Division:
    """Divide the features [n, D] of a class into two groups by linear discriminant analysis.

    The metric is the inverse of S_e. The division begins at random. The gain is the mean over rows
    of the log-likelihood with the mean of the row's group, less that with one identity.
    """
    metric = np.linalg.pinv(found.variation, hermitian=True)
    second = generator.random(len(features)) < 0.5
    means = [features.mean(0)] * 2
    for _ in range(STEPS):
        if second.all() or not second.any():
            return Division(second & False, np.full(len(features), 0.5), 0.0)
        means = [features[~second].mean(0), features[second].mean(0)]
        apart = distances(features, means[0], metric) - distances(features, means[1], metric)
        if np.array_equal(second, apart > 0):
            break
        second = apart > 0
    first, other = (distances(features, mean, metric) for mean in means)
    one = identity_of(len(features), features.mean(0), found)
    gain = (distances(features, one, metric) - np.where(second, other, first)).mean() / 2
    return Division(second, first / np.maximum(first + other, 1e-12), float(gain))


def distances(
    features: Float[np.ndarray, "n D"],
    centre: Float[np.ndarray, " D"],
    metric: Float[np.ndarray, "D D"],
) -> Float64[np.ndarray, " n"]:
    """Return the squared distances [n] of features to a centre, in a metric [D, D]."""
    apart = features - centre
    return np.einsum("ni,ij,nj->n", apart, metric, apart)


def make_scan(config: SCAnConfig, info: DataInfo) -> SampleDetector:
    """Return SCAn, a `SampleDetector` that flags one group of every contaminated class.

    The index of a class is |gain / largest gain − median| / (1.4826 · MAD) over the classes. In a
    class whose index is above `index`, the flagged group is the one with fewer clean
    reserved images.

    Deviations: a sample's score is d3jax's, since the method gives flags alone. It is the index of
    its class times its nearness to the suspicious group. The features are averages over space, of
    which the released program takes sums. The result does not depend on that factor.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        generator = np.random.default_rng(np.asarray(jax.random.bits(stream(key, "scan"), (4,))))
        clean, given = (
            penultimate(model, variables, split.images).astype(np.float64)
            for split in (reserved, samples)
        )
        middle = clean.mean(0)
        return judge(
            (given - middle, np.asarray(samples.labels)),
            (clean - middle, np.asarray(reserved.labels)),
            config.index,
            generator,
        )

    def check(model: Model, shapes: Variables, samples: int, reserved: int) -> None:
        if reserved < 2 * info.num_classes:
            raise ConfigError(
                f"SCAn: {reserved} reserved images, want at least two for each of the "
                f"{info.num_classes} classes"
            )

    return SampleDetector(score, check)


def judge(
    samples: tuple[Float64[np.ndarray, "N D"], Integer[np.ndarray, " N"]],
    clean: tuple[Float64[np.ndarray, "M D"], Integer[np.ndarray, " M"]],
    limit: float,
    generator: np.random.Generator,
) -> Scored:
    """Return SCAn's scores and flags of samples, from features less the mean of clean ones.

    `samples` and `clean` are features and labels. `limit` is the index above which a class is
    contaminated.
    """
    found = estimate(*clean)
    labels = np.unique(samples[1])
    divisions, rows = [], []
    for label in labels:
        rows.append(np.flatnonzero(samples[1] == label))
        trusted = clean[0][clean[1] == label]
        division = divide(np.concatenate([samples[0][rows[-1]], trusted]), found, generator)
        divisions.append(_suspicious_second(division, len(trusted)))
    gains = np.array([division.gain for division in divisions])
    index = deviation_index(gains / max(gains.max(), 1e-12))
    scores, flagged = np.zeros(len(samples[1])), np.zeros(len(samples[1]), bool)
    for own, division, value in zip(rows, divisions, index, strict=True):
        scores[own] = value * division.nearness[: len(own)]
        flagged[own] = division.second[: len(own)] & (value > limit)
    return Scored(scores.astype(np.float32), flagged)


def _suspicious_second(division: Division, trusted: int) -> Division:
    """Return the division whose second group has fewer of the last `trusted`, clean rows."""
    clean = division.second[len(division.second) - trusted :]
    if 2 * clean.sum() <= trusted:
        return division
    return Division(~division.second, 1 - division.nearness, division.gain)
