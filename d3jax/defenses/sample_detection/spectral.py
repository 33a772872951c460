"""Spectral signatures, a detector of poisoned samples (Tran, Li & Madry, NeurIPS 2018).

Source: arXiv 1811.00636. Poisoned samples shift the features of their class in one direction. The
score of a sample is the squared projection of its feature on the top right singular vector of the
class's centred features.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from ...config.fields import check_fields, option
from ...core.types import DataInfo, Model, SampleDetector, Scored, Split, Variables
from ...training.loop import Hooks
from .common import score_by_class


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
    """Settings of spectral signatures, which flags samples with outlying features in a class.

    The defaults are the paper's projection and BackdoorBench's percentile, applied to every class.
    The rule flags a fixed share of every class, so by default also 15 % of a clean class.
    """

    percentile: float = option(
        85.0, "percentile of a class's scores above which samples are flagged", above=0, high=100
    )
    projected: Literal["centred", "uncentred"] = option(
        "centred",
        "features to project: centred, as in the paper, or uncentred, as in BackdoorBench",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build the spectral signatures detector for the data set that `info` describes."""
        return make_spectral(self, info)


def signature(
    features: Float[np.ndarray, "n D"], projected: str = "centred"
) -> Float[np.ndarray, " n"]:
    """Return the squared projections [n] of one class's features [n, D] on their top direction.

    The direction is the top right singular vector of the centred features. `projected` says which
    features are projected on it, as in `SpectralConfig`.
    """
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return ((centred if projected == "centred" else features) @ directions[0]) ** 2


def make_spectral(config: SpectralConfig, info: DataInfo) -> SampleDetector:
    """Return spectral signatures, a `SampleDetector` of samples with outlying features in a class.

    The scores are those of `signature` for the penultimate features. A sample is flagged if its
    score is above the `percentile` of its class.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split | None = None,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        def judge(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scores = signature(features, config.projected)
            return scores, scores > np.percentile(scores, config.percentile)

        return score_by_class(model, variables, samples, judge)

    return SampleDetector(score)
