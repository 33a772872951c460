"""Activation clustering, a detector of poisoned samples (Chen et al., SafeAI 2019).

Source: arXiv 1811.03728. For each label, FastICA reduces the penultimate features, and k-means
splits them into two clusters. If the smaller cluster holds an unusually small share of the class,
its samples are flagged as poisoned.
"""

from __future__ import annotations

import dataclasses
import warnings

import jax
import numpy as np
from jaxtyping import Bool, Float

from ...config.fields import check_fields, option
from ...core.random import stream
from ...core.types import DataInfo, Model, SampleDetector, Scored, Split, Variables
from ...training.loop import Hooks
from .common import score_by_class


@dataclasses.dataclass(frozen=True)
class ActivationClusteringConfig:
    """Settings of activation clustering, which flags a class's small cluster of features.

    The defaults are those of the paper and of BackdoorBench: ten independent components, and a
    share of about a third.
    """

    components: int = option(10, "number of independent components of the features", low=1)
    share: float = option(
        0.35, "share of its class below which the smaller cluster is flagged", above=0, high=0.5
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build the activation clustering detector for the data set that `info` describes."""
        return make_activation_clustering(self, info)


def clusters(
    features: Float[np.ndarray, "n D"], components: int, seed: int
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Split a class's features [n, D] into two clusters; return mask and nearness of the smaller.

    The mask is [n] bool, and the nearness [n] of each row to that cluster is in [0, 1]. The
    nearness is d_other / (d_own + d_other), where d_own is the distance from the centre of the
    smaller cluster. Half way between the two centres it is 1/2.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    count = min(components, *features.shape)
    with warnings.catch_warnings():
        # The published method uses the last iterate, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        reduced = FastICA(count, whiten="unit-variance", random_state=seed).fit_transform(
            features - features.mean(0)
        )
        found = KMeans(2, n_init=10, random_state=seed).fit(reduced)  # pyright: ignore[reportArgumentType]  # not only "auto"
    distances, labels = found.transform(reduced), np.asarray(found.labels_)
    smaller = int(np.bincount(labels, minlength=2).argmin())
    near = distances[:, 1 - smaller] / np.maximum(distances.sum(1), 1e-12)
    return labels == smaller, near


def make_activation_clustering(
    config: ActivationClusteringConfig, info: DataInfo
) -> SampleDetector:
    """Return activation clustering, a `SampleDetector` that flags a class's small cluster.

    The published method gives flags but no scores. The score (1 − 2 · share) · nearness is d3jax's.
    Here `share` is the share of the class in its smaller cluster, and the nearness is that of
    `clusters`. A class with fewer than four samples, or with equal features, scores 0.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split | None = None,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        seed = int(jax.random.randint(stream(key, "clusters"), (), 0, 2**31 - 1))

        def judge(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if len(features) < 4 or not np.ptp(features, axis=0).any():
                return np.zeros(len(features)), np.zeros(len(features), bool)
            smaller, near = clusters(features, config.components, seed)
            share = smaller.mean()
            return (1 - 2 * share) * near, smaller & (share < config.share)

        return score_by_class(model, variables, samples, judge)

    return SampleDetector(score)
