"""The isolation of ABL and the filter of DLP, as detectors of poisoned samples.

A model learns poisoned samples earlier than clean ones. Both methods train from scratch on the
samples for a short time, which is the first stage of the defence. Then they rank the samples by a
score and flag the lowest. The score of ABL (arXiv 2110.11571) is the loss under the given label.
That of DLP (arXiv 2406.13098) is the predictive entropy.
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
    """Return ABL's isolation: a detector that flags the `ratio` of samples with the lowest loss.

    The loss is the cross-entropy under the given label, after ABL's first stage.
    """
    return isolation(make_abl(config, info), "cross_entropy", config.ratio)


def make_dlp_filter(config: DLPConfig, info: DataInfo) -> SampleDetector:
    """Return DLP's filter: a detector that flags the `ratio` of samples with the lowest `score`.

    The score is computed after DLP's first stage. With `score: mixture` it may flag fewer samples.
    """
    return isolation(make_dlp(config, info), config.score, config.ratio)


def isolation(defense: TrainingDefense, score: Score, ratio: float) -> SampleDetector:
    """Build a `SampleDetector` that ranks samples by a score after the first stage of a defence.

    `defense` is the training-time defence whose first stage trains the model. The detector's own
    score is the place in the ranking divided by the number of samples, 1 for the most suspicious.
    """

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
        places[judged.ranked] = np.arange(len(places), 0, -1)  # breaks ties as `judge` does
        flagged = np.isin(np.arange(len(places)), judged.suspects)
        return Scored(places / len(places), flagged)

    def check(model: Model, shapes: Variables, samples: int, reserved: int) -> None:
        defense.check(model, shapes, samples, reserved)

    return SampleDetector(rank, check, first_stage=defense)
