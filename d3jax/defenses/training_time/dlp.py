"""DLP, active defence with a decoupled learning process (Ying & Wu, Cybersecurity 2023).

Source: arXiv 2406.13098. DLP trains a model from scratch on a poisoned set, in three stages:

1. Supervised learning on all images, for few epochs. The backdoor is learned sooner than the task.
2. Active unlearning. An entropy filter picks suspects, from classes that trials single out. The
   model then unlearns them.
3. Active semi-supervised fine-tuning. The best half of the images keeps its labels. The other
   images lose them, and the images that rank last are dropped.

Only the paper's abstract and published summaries were available, not its settings and tables. The
stages and the entropy filter are the paper's, and the trials are d3jax's. Every number here is
d3jax's or that of a related method, as the options say. No number of the paper is quoted.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import numpy as np

from ...config.fields import check_fields, option
from ...config.loading import to_mapping
from ...config.recipes import OptimConfig, TrainConfig
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import DataInfo, Model, Split, Trained, TrainingDefense, Variables
from ...metrics.sample_scores import Score, ranking, scores_of
from ...runtime.distributed import same_arrays
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.semi_supervised import SemiConfig, semi_supervised_loop
from ...training.step import classification_loss
from .dlp_rows import first_of, guessed_rows, labelled_rows
from .suspicion import (
    ASCENT,
    Judged,
    UnlearnConfig,
    appended,
    check_batch,
    check_ratio,
    check_unlearning,
    epoch_steps,
    first_stage_loop,
    found_of,
    found_shapes,
    judge,
    suspect,
    suspected,
    unlearning_loop,
)

FIRST = OptimConfig(lr=0.01, nesterov=True, weight_decay=1e-4, schedule="constant")
"""The optimiser of stage 1: that of ABL, with a lower learning rate.

At ABL's learning rate of 0.1, PreActResNet18 at width 64 becomes NaN within 20 steps. This net has
no norm before its classifier. BackdoorBench gives ABL 0.01 on it. Nets of width 8 and 16 can be
trained at 0.1 (see docs/departures.md).
"""
UNLEARN = functools.partial(
    UnlearnConfig,
    kind="uniform",
    descent="together",
    optimizer=dataclasses.replace(ASCENT, lr=5e-3),
    steps=100,
)
"""The settings of stage 2: training towards a uniform prediction, with descent on trusted images.

- It is not gradient ascent, because the entropy filter picks the most certain images. On these the
  gradient of cross-entropy vanishes. After 200 steps of ascent at ABL's learning rate, all of them
  are predicted as before.
- It includes descent on trusted images of every class. Without it, the suspects' whole class is
  unlearned, and its clean images can no longer be told from the poison.
- Suspects and trusted images share a batch, which updates the BatchNorm statistics. With frozen
  statistics, a net can unlearn a trigger that returns as soon as statistics are estimated again, as
  in stage 3.

These settings were chosen by the poison flags of the training images, which a defender does not
have (see docs/results/dlp.md).
"""


@dataclasses.dataclass(frozen=True)
class DLPConfig:
    """Settings of DLP, a training-time defence by filter, unlearning and semi-supervision.

    They are those of all three stages. A part in a config file takes the values that it leaves out
    from DLP's defaults. A part made in Python has the defaults of its own class, so start with
    `dataclasses.replace(DLPConfig().unlearn, …)`.

    The defaults spare every class. They therefore keep the backdoor if a whole class is poisoned,
    as by a clean-label attack at a high rate. To give up the suspects' class instead, poisoned or
    not, set `trials=0`, `least=0` and an `unlearn` with `trusted="all"`.
    """

    stages: Literal["1", "12", "13", "123"] = option(
        "123",
        "stages that run; 1, 12 and 13 are ablations, and settings of other stages are not read",
    )
    supervised: TrainConfig = option(
        lambda: TrainConfig(epochs=20, augment="none", optimizer=FIRST),
        "training recipe of stage 1 (ABL's, at BackdoorBench's learning rate, 20 epochs as in "
        "ABL's paper)",
    )
    score: Score = option(
        "entropy",
        "score that the filter ranks by: entropy (the paper's), cross_entropy (ABL's), symmetric "
        "(DBD's), or mixture, which may find fewer suspects",
    )
    ratio: float = option(
        0.01,
        "share of the images that are suspects (ABL's); with score: mixture, the largest share",
        above=0,
        high=0.5,
    )
    unlearn: UnlearnConfig = option(
        UNLEARN, "unlearning of stage 2 (d3jax's, chosen by poison flags)"
    )
    trials: int = option(
        2,
        "number of trial unlearnings in stage 2; suspects are then taken from the classes whose "
        "labels became unlikely (d3jax's, chosen by poison flags); 0: the lowest scores of all "
        "images are suspects, as in the paper",
        low=0,
    )
    rescore: Literal["cross_entropy", "symmetric"] = option(
        "symmetric",
        "score that ranks images after unlearning, in trials and stage 3 (DBD's); both choices "
        "read the label, as entropy does not show that a label became unlikely",
    )
    kept: float = option(0.5, "share of the images that keep their labels (DBD's)", above=0, high=1)
    least: float = option(
        0.4,
        "share of every class that keeps its labels whatever its scores: at least one image, but "
        "no suspects (0: none; d3jax's); a class larger than the mean counts as the mean, as "
        "poison may have enlarged it; for classes of about equal size",
        low=0,
        high=1,
    )
    dropped: float = option(
        0.2,
        "share of the images that stage 3 leaves out: suspects first, then those that rank last "
        "(d3jax's, chosen on SIG by its poison flags)",
        low=0,
        high=1,
    )
    semi: SemiConfig = option(
        lambda: SemiConfig(statistics="plain", weight=1.0),
        "training of stage 3: DBD's fine-tuning, but images are split once, not in every epoch, "
        "and some are left out; d3jax's are 20 epochs (DBD: 190), a learning rate that falls to 0, "
        "λ_u 1 (DBD: 15) and `plain` statistics",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if "2" in self.stages and self.trials:
            for name, wrong in (("descent", "none"), ("trusted", "all")):
                if getattr(self.unlearn, name) == wrong:
                    raise ConfigError(
                        f"trials: {self.trials} does not work with unlearn.{name}: {wrong}, as a "
                        "trial needs trusted images of every class; set trials: 0 for no trials"
                    )
        if "3" in self.stages:
            if self.least > self.kept:
                raise ConfigError(
                    f"least: {self.least:g} of every class cannot keep its labels if only "
                    f"kept: {self.kept:g} of all images do"
                )
            if self.kept + self.dropped >= 1:
                raise ConfigError(
                    f"kept: {self.kept:g} and dropped: {self.dropped:g} leave no images to learn "
                    "from without their labels"
                )

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence DLP for the data set that `info` describes."""
        return make_dlp(self, info)


class Unlearned(NamedTuple):
    """The result of DLP's stage 2: the model, its suspects, new scores and log records.

    `judged` holds the last suspects. `scores` are arrays [N] of all images after unlearning: the
    score `rescore`, the entropy, and whether the model is `right`.
    """

    variables: Variables
    judged: Judged
    scores: dict[str, np.ndarray]
    lines: list[LogRecord]


def unlearn(
    config: DLPConfig,
    key: jax.Array,
    model: Model,
    data: Split,
    begun: Variables,
    judged: Judged,
    hooks: Hooks,
) -> Unlearned:
    """Run stage 2 of DLP: find suspects by trial unlearnings, and unlearn them from a model.

    The lowest scores of all images may be those of an easy class. The first trial therefore
    unlearns the same share of every class: the images with the lowest scores, at least one. It
    descends on trusted images of every class at the same time. If the suspects resemble their
    class, the trusted images preserve their predictions. If they are poisoned, their labels become
    unlikely.

    The next suspects are as many as in `judged`. They are again the lowest scores of a class. Their
    classes are those of the images whose labels became unlikely most. Another trial may follow.
    All trials, and the final unlearning, start from `begun`, the variables after stage 1.
    """
    labels, suspects, lines = np.asarray(data.labels), judged.suspects, []
    names, count = [f"trial-{trial + 1}" for trial in range(config.trials)], len(suspects)
    if config.trials:
        of_each_class = np.maximum(1, np.bincount(labels) * count // len(labels))
        suspects = first_of(judged.ranked, labels, of_each_class)
    for name in [*names, "unlearn"]:
        judged = suspect(judged.scores, judged.ranked, labels, suspects, config.unlearn.trusted)
        loop = unlearning_loop(stream(key, name), model, begun, data, judged, config.unlearn)
        state, more = fit(loop, hooks.within(name, max(1, config.unlearn.steps // 4)))
        lines = appended(lines, more)
        after = same_arrays(
            scores_of(model, state.variables, data, ("right", config.rescore, "entropy"))
        )
        hooks.say(
            f"{name}: {int(state.carry.moves)} of {int(state.step)} steps unlearned suspects; "
            f"{after['right'][judged.suspects].mean():.1%} of the suspects are still predicted as "
            "their labels"
        )
        change = judged.scores[config.rescore] - after[config.rescore]
        risen = ranking(change, after["entropy"])[:count]
        suspects = first_of(judged.ranked, labels, np.bincount(labels[risen]))
    return Unlearned(state.variables, judged, after, lines)


def train_semi_supervised(
    config: DLPConfig,
    key: jax.Array,
    model: Model,
    data: Split,
    variables: Variables,
    scores: dict[str, np.ndarray],
    suspects: np.ndarray,
    hooks: Hooks,
    info: DataInfo,
) -> tuple[Variables, list[LogRecord], dict[str, np.ndarray]]:
    """Run stage 3 of DLP: train on the best images with labels, and on most others without.

    `scores` are those of `Unlearned`, and `suspects` [S] are row numbers. Return the variables, the
    log records, and what `suspicion.found_of` takes: the scores that ranked the images, and the
    rows that kept their labels.
    """
    size, labels = len(data.labels), np.asarray(data.labels)
    ranked, ties = scores[config.rescore], scores["entropy"]
    labelled = labelled_rows(ranked, ties, labels, suspects, int(config.kept * size), config.least)
    others = guessed_rows(ranked, ties, labelled, suspects, int(config.dropped * size))
    if gone := sorted(set(labels.tolist()) - set(labels[labelled].tolist())):
        hooks.say(f"no image of the classes {gone} keeps its label")
    if config.semi.method == "mixmatch" and not (info.crop or info.flip):
        hooks.say(
            "the data set allows neither crop nor flip: both guesses of MixMatch are from the same "
            "images"
        )
    loop = semi_supervised_loop(
        stream(key, "semi"), model, variables, data, labelled, others, config.semi, info
    )
    period = epoch_steps(max(len(labelled), len(others)), config.semi.batch_size)
    state, lines = fit(loop, hooks.within("semi", period))
    used = {"rescored": ranked, "rescored_entropy": ties, "labelled": labelled}
    return state.variables, lines, used


def make_dlp(config: DLPConfig, info: DataInfo) -> TrainingDefense:
    """Return DLP, a training-time defence by filtering, unlearning and semi-supervised training.

    Without stage 3, the result is the model after stage 2 or stage 1. Without stage 2, nothing is
    unlearned. Suspects never keep their labels. An image that loses its label and is not dropped is
    trained on under a label that the model guesses.
    """

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        return first_stage_loop(
            stream(key, "supervised"),
            model,
            data,
            config.supervised,
            info,
            classification_loss(model),
        )

    def train(
        key: jax.Array, model: Model, data: Split, begun: Variables, hooks: Hooks = Hooks()
    ) -> Trained:
        judged = judge(model, begun, data, config.score, config.ratio, config.unlearn.trusted)
        variables, scores, lines = begun, judged.scores, []
        if "2" in config.stages:
            variables, judged, scores, lines = unlearn(
                config, key, model, data, begun, judged, hooks
            )
        found = {"suspects": judged.suspects}
        if "3" in config.stages:
            variables, more, used = train_semi_supervised(
                config, key, model, data, variables, scores, judged.suspects, hooks, info
            )
            lines, found = appended(lines, more), found | used
        return Trained(
            variables, found_of(len(data.labels), judged.scores, **found), trace_of(lines)
        )

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_ratio(config.ratio, size)
        check_batch("supervised", config.supervised.batch_size, size, "images")
        if "2" in config.stages:
            check_unlearning(config.unlearn, size)
        if "3" in config.stages:
            kept = int(config.kept * size)
            labelled = min(kept, size - suspected(size, config.ratio))
            check_batch("semi", config.semi.batch_size, labelled, "images that keep their labels")
            guessed = size - kept - int(config.dropped * size)
            check_batch(
                "semi",
                config.semi.batch_size,
                guessed,
                "images that lose their labels and are not dropped",
            )

    def epoch(size):
        return epoch_steps(size, config.supervised.batch_size)

    return TrainingDefense(
        begin, {"dlp": to_mapping(config.supervised)}, train, found_shapes, check, epoch
    )
