"""The isolation of ABL and of DLP as detectors: what is learned early is suspicious.

Both train from scratch on the samples for a short time, the first stage of the defence, and rank
by a score of each sample under its label: ABL (arXiv 2110.11571) by the loss, DLP (arXiv 2406.13098)
by the predictive entropy. The lowest are flagged.
"""

from __future__ import annotations

import jax
import numpy as np

from ...core.types import DataInfo, Model, SampleDetector, Scored, Split, TrainingDefense, Variables
from ...metrics.sample_scores import Score
from ...training.loop import Hooks
from ..training_time.abl import ABLConfig, make_abl
from ..training_time.dlp import DLPConfig, make_dlp
from ..training_time.suspicion import judge


def make_abl_isolation(config: ABLConfig, info: DataInfo) -> SampleDetector:
    """Return ABL's isolation: the `ratio` of the samples with the lowest cross-entropy is flagged."""
    return isolation(make_abl(config, info), "cross_entropy", config.ratio)


def make_dlp_filter(config: DLPConfig, info: DataInfo) -> SampleDetector:
    """Return DLP's filter: the `ratio` of the samples with the lowest `score` is flagged."""
    return isolation(make_dlp(config, info), config.score, config.ratio)


def isolation(defense: TrainingDefense, score: Score, ratio: float) -> SampleDetector:
    """Return the detector that ranks by a score after a training-time defence's first stage."""

    def rank(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split | None = None,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        judged = judge(model, variables, samples, score, ratio)
        places = np.empty(len(judged.ranked), np.float32)
        places[judged.ranked] = np.arange(len(places), 0, -1)  # ties broken as the filter does
        flagged = np.isin(np.arange(len(places)), judged.suspects)
        return Scored(places / len(places), flagged)

    def check(model: Model, shapes: Variables, samples: int, reserved: int) -> None:
        defense.check(samples)

    return SampleDetector(rank, check, first_stage=defense)
