"""DLP: active defence with a decoupled learning process (Ying & Wu, Cybersecurity 2023, arXiv 2406.13098).

1. Supervised learning on all images, for few epochs: the backdoor is learned sooner than the task.
2. Active unlearning: an entropy filter picks suspects, and gradient ascent unlearns them.
3. Active semi-supervised fine-tuning: the best half keeps its labels, the rest loses them.

Known of the paper are its abstract and published summaries; its settings and tables were not available. The stages and the entropy filter are
the paper's, every number here is a relative's or ours, as the options say, and no number of the paper is quoted.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

from ..analysis.isolation import Score, scores_of
from ..base import DataInfo, Model, Split, Trained, TrainingDefense, Variables, stream
from ..config import OptimConfig, TrainConfig, check_fields, option
from ..config_file import to_mapping
from ..data.batching import epoch_plan
from ..sharding import same_arrays
from ..training.loop import Job, Session, fit, trace_of
from ..training.semi_supervised import SemiConfig, semi_job
from ..training.step import classification_loss
from .untrusted import (
    UnlearnConfig,
    behind,
    check_unlearning,
    epoch_steps,
    first_job,
    found_of,
    found_shapes,
    judge,
    suspected,
    unlearning_job,
)

FIRST = OptimConfig(lr=0.1, nesterov=True, weight_decay=1e-4, schedule="constant")


@dataclasses.dataclass(frozen=True)
class DLPConfig:
    """Every slot of the three stages."""

    stages: Literal["1", "12", "13", "123"] = option("123", "which stages run: the ablations of the paper's kind")
    supervised: TrainConfig = option(
        lambda: TrainConfig(epochs=20, augment="none", optimizer=FIRST),
        "stage 1 (ABL's and DBD's settings, 20 epochs as ABL's paper)",
    )
    score: Score = option(
        "entropy", "what the filter ranks by: entropy as the paper; cross_entropy as ABL; symmetric as DBD; mixture"
    )
    ratio: float = option(0.01, "share of the images that is suspected (ABL's)", above=0, high=0.5)
    unlearn: UnlearnConfig = option(UnlearnConfig, "stage 2 (ABL's, with a rule that stops it: ours)")
    rescore: Literal["cross_entropy", "symmetric"] = option(
        "symmetric",
        "what stage 3 ranks by, after unlearning (DBD's); both know the label: entropy would not see that it is unlikely now",
    )
    kept: float = option(0.5, "share of the images that keep their labels (DBD's)", above=0, high=1)
    least: int = option(10, "images of every class that keep their labels whatever they score, suspects excepted (ours)", low=0)
    semi: SemiConfig = option(SemiConfig, "stage 3 (DBD's fine-tuning)")

    def __post_init__(self) -> None:
        check_fields(self)


def trusted_rows(scores: np.ndarray, labels: np.ndarray, suspects: np.ndarray, count: int, least: int) -> np.ndarray:
    """Sorted rows [count] that keep their labels: the lowest scores, but of every class its `least` lowest first, and no suspect.

    Fewer than `count` where there are not so many. A class all of whose images are suspects is empty then, and stays so.
    """
    allowed = np.ones(len(scores), bool)
    allowed[suspects] = False
    order = np.argsort(scores, kind="stable")
    order = order[allowed[order]]
    first = np.zeros(len(scores), bool)
    for label in np.unique(labels):
        first[order[labels[order] == label][:least]] = True
    return np.sort(np.concatenate([order[first[order]], order[~first[order]]])[:count])


def dlp(config: DLPConfig, info: DataInfo) -> TrainingDefense:
    """DLP. Without stage 3 the model is what stage 1, or 2, leaves; without stage 2 nothing is unlearned, but suspects never keep labels."""

    def begin(key: jax.Array, model: Model, data: Split) -> Job:
        return first_job(stream(key, "supervised"), model, data, config.supervised, info, classification_loss(model))

    def train(key: jax.Array, model: Model, data: Split, begun: Variables, session: Session = Session()) -> Trained:
        size, variables, lines = len(data.labels), begun, []
        judged = judge(model, begun, data, config.score, config.ratio)
        found = {"suspects": judged.suspects}
        if "2" in config.stages:
            job = unlearning_job(stream(key, "unlearn"), model, variables, data, judged, config.unlearn)
            state, lines = fit(job, session.within("unlearn", max(1, config.unlearn.steps // 4)))
            variables = state.variables
        if "3" in config.stages:
            again = same_arrays({"again": scores_of(model, variables, data, (config.rescore,))[config.rescore]})["again"]
            labels = np.asarray(data.labels)
            labelled = trusted_rows(again, labels, judged.suspects, int(config.kept * size), config.least)
            if gone := sorted(set(labels.tolist()) - set(labels[labelled].tolist())):
                session.say(f"no image of {gone} keeps its label: all are suspects")
            others = np.setdiff1d(np.arange(size), labelled)
            job = semi_job(stream(key, "semi"), model, variables, data, labelled, others, config.semi, info)
            state, more = fit(job, session.within("semi", epoch_steps(max(len(labelled), len(others)), config.semi.batch_size)))
            variables, lines = state.variables, behind(lines, more)
            found |= {"rescored": again, "labelled": labelled}
        return Trained(variables, found_of(size, judged.scores, **found), trace_of(lines))

    def check(size: int) -> None:
        epoch_plan(size, config.supervised.batch_size, drop_last=True)
        if "2" in config.stages:
            check_unlearning(config.unlearn, size)
        if "3" in config.stages:
            labelled = min(int(config.kept * size), size - suspected(size, config.ratio))
            for count in (labelled, size - labelled):
                epoch_plan(count, config.semi.batch_size, drop_last=True)

    epoch = lambda size: epoch_steps(size, config.supervised.batch_size)
    return TrainingDefense(begin, {"dlp": to_mapping(config.supervised)}, train, found_shapes, check, epoch)
