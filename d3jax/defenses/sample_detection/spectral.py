"""Spectral signatures (Tran, Li & Madry, NeurIPS 2018, arXiv 1811.00636).

Poisoned samples of a class shift its features in one direction. The score of a sample is the square of
its feature's projection on the top right singular vector of the class's centred features.
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
    """Default: the paper's projection with BackdoorBench's percentile, in every class.

    The rule flags a fixed share of every class, so that 15 % of a clean class are flagged too.
    """

    percentile: float = option(
        85.0, "percentile of a class's scores above which samples are flagged", above=0, high=100
    )
    projected: Literal["centred", "uncentred"] = option(
        "centred",
        "features that are projected: centred as in the paper, or as they are, as BackdoorBench",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Return the detector for a data set."""
        return make_spectral(self, info)


def signature(
    features: Float[np.ndarray, "n D"], projected: str = "centred"
) -> Float[np.ndarray, " n"]:
    """Return the scores [n] of one class's features [n, D]."""
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return ((centred if projected == "centred" else features) @ directions[0]) ** 2


def make_spectral(config: SpectralConfig, info: DataInfo) -> SampleDetector:
    """Return the detector by spectral signatures of the penultimate features."""

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
