"""DLP: active defence with a decoupled learning process (Ying & Wu, Cybersecurity 2023, arXiv 2406.13098).

1. Supervised learning on all images, for few epochs: the backdoor is learned sooner than the task.
2. Active unlearning: an entropy filter picks suspects, of classes that trials single out, and they are unlearned.
3. Active semi-supervised fine-tuning: the best half keeps its labels, the rest loses them, and of what ranks last nothing is learned.

Known of the paper are its abstract and published summaries; its settings and tables were not available. The stages and the entropy filter are
the paper's, the trials are ours, every number here is a relative's or ours, as the options say, and no number of the paper is quoted.
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
"""ABL's, but for the rate: at its 0.1 PreActResNet18, which has no norm before its classifier, is NaN within 20 steps at width 64. 0.01 is what
BackdoorBench gives ABL on it; nets of width 8 and 16 bear 0.1 (BUILD_NOTES)."""
UNLEARN = functools.partial(
    UnlearnConfig,
    kind="uniform",
    descent="together",
    optimizer=dataclasses.replace(ASCENT, lr=5e-3),
    steps=100,
)
"""Towards an even prediction, not ascent: the entropy filter picks the most certain images, on which the gradient of cross-entropy
vanishes (200 steps of ascent at ABL's rate leave all of them what they were). With descent on trusted images of every class, without
which the suspects' class goes whole, and what is clean in it is no longer told from the poison. Both in one batch, whose statistics are
learned: under frozen ones a net can unlearn a trigger that is back as soon as statistics are estimated anew, as stage 3 does. Chosen by
the training images' poison flags, which a defender does not have (BUILD_NOTES)."""


@dataclasses.dataclass(frozen=True)
class DLPConfig:
    """Every slot of the three stages. What a part leaves out in a config file is DLP's; made by hand, it is what the part's class says, so
    that one begins with `dataclasses.replace(DLPConfig().unlearn, …)`.

    The defaults spare every class, and so keep the backdoor where one is poisoned whole, as by a clean-label attack at a high rate.
    `trials=0`, `least=0` and an `unlearn` whose `trusted` is all give the suspects' class up instead, poisoned or not (BUILD_NOTES)."""

    stages: Literal["1", "12", "13", "123"] = option(
        "123",
        "which stages run: the ablations of the paper's kind; settings of the others are not read",
    )
    supervised: TrainConfig = option(
        lambda: TrainConfig(epochs=20, augment="none", optimizer=FIRST),
        "stage 1 (ABL's settings at BackdoorBench's rate, 20 epochs as ABL's paper)",
    )
    score: Score = option(
        "entropy",
        "what the filter ranks by: entropy as the paper; cross_entropy as ABL; symmetric as DBD; mixture, as many as it says",
    )
    ratio: float = option(
        0.01,
        "share of the images that is suspected (ABL's); with mixture at most",
        above=0,
        high=0.5,
    )
    unlearn: UnlearnConfig = option(UNLEARN, "stage 2 (ours, chosen by poison flags)")
    trials: int = option(
        2,
        "how often stage 2 unlearns for a trial first, to see in which classes labels become unlikely by it: of those are the suspects "
        "(ours, chosen by poison flags; 0: the lowest of all, as the paper)",
        low=0,
    )
    rescore: Literal["cross_entropy", "symmetric"] = option(
        "symmetric",
        "what trials and stage 3 rank by, after unlearning (DBD's); both know the label: entropy would not see that it is unlikely now",
    )
    kept: float = option(0.5, "share of the images that keep their labels (DBD's)", above=0, high=1)
    least: float = option(
        0.4,
        "share of every class that keeps its labels whatever it scores, at least one image, suspects excepted; of a class larger than the "
        "mean, which poison may have made it, the share of the mean: for classes that are about as large (0: none; ours)",
        low=0,
        high=1,
    )
    dropped: float = option(
        0.2,
        "share of the images that stage 3 learns nothing from: suspects first, then those that rank last (ours, chosen on SIG by its poison "
        "flags)",
        low=0,
        high=1,
    )
    semi: SemiConfig = option(
        lambda: SemiConfig(statistics="plain", weight=1.0),
        "stage 3 (DBD's fine-tuning, but that the images are split once, not in every epoch, and some are left out; 20 epochs for its 190, "
        "a rate that falls to 0, λ_u 1 for its 15 and `plain` statistics are ours)",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if "2" in self.stages and self.trials:
            for name, wrong in (("descent", "none"), ("trusted", "all")):
                if getattr(self.unlearn, name) == wrong:
                    raise ConfigError(
                        f"trials: {self.trials} stands beside unlearn.{name}: {wrong}, but a trial needs trusted images of every class "
                        "to say anything; trials: 0 does without"
                    )
        if "3" in self.stages:
            if self.least > self.kept:
                raise ConfigError(
                    f"least: {self.least:g} of every class cannot keep its labels where kept: {self.kept:g} of all do"
                )
            if self.kept + self.dropped >= 1:
                raise ConfigError(
                    f"kept: {self.kept:g} and dropped: {self.dropped:g} leave no images to learn from without their labels"
                )

    def build(self, info: DataInfo) -> TrainingDefense:
        """Return the defence for a data set."""
        return make_dlp(self, info)


def labelled_rows(
    scores: np.ndarray, ties: np.ndarray, labels: np.ndarray, suspects: np.ndarray, count: int, least: float
) -> np.ndarray:  # fmt: skip
    """Sorted rows [count] that keep their labels: the lowest scores, among equal ones those with the lowest `ties`, but first of all
    the lowest of every class, `least` of it or of the mean class, if that is smaller, and at least one (none at 0), and no suspect.

    Fewer than `count` where there are not so many. A class all of whose images are suspects is empty then, and stays so.
    """
    allowed = np.ones(len(scores), bool)
    allowed[suspects] = False
    order = ranking(scores, ties)
    order = order[allowed[order]]
    rank = np.full(len(scores), len(scores))  # of the images that come first, within their class
    classes, sizes = np.unique(labels, return_counts=True)
    for label, size in zip(classes, np.minimum(sizes, sizes.mean()), strict=True):
        mine = order[labels[order] == label]
        first = mine[: max(1, int(least * size))] if least else mine[:0]
        rank[first] = np.arange(len(first))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def guessed_rows(
    scores: np.ndarray, ties: np.ndarray, labelled: np.ndarray, suspects: np.ndarray, dropped: int
) -> np.ndarray:
    """Sorted rows that are learned from without their labels: all but the `labelled` and `dropped` more. Suspects are dropped first,
    then the highest scores, among equal ones those with the highest `ties`."""
    rows = np.setdiff1d(np.arange(len(scores)), labelled)
    order = rows[np.lexsort((ties[rows], scores[rows], np.isin(rows, suspects)))]
    return np.sort(order[: max(0, len(rows) - dropped)])


def first_of(ranked: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of every class k the first `counts[k]` of the rows `ranked`."""
    return np.concatenate(
        [ranked[labels[ranked] == label][:count] for label, count in enumerate(counts)]
    )


class Unlearned(NamedTuple):
    """What stage 2 leaves: the model, who was suspected, what `rescore` and entropy say of all images then, and what was logged."""

    variables: Variables
    judged: Judged
    scores: dict[str, np.ndarray]
    lines: list[LogRecord]


def unlearn(
    config: DLPConfig, key: jax.Array, model: Model, data: Split, begun: Variables, judged: Judged, hooks: Hooks
) -> Unlearned:  # fmt: skip
    """Stage 2, from what stage 1 `begun`.

    The lowest scores of all may be those of an easy class. The first trial unlearns the same share of every class, its lowest, at least
    one image, and descends on trusted images of every class: where the suspects are like the others of their class, those hold them, and
    where they are poisoned they fall. The next suspects, as many as were `judged`, are again the lowest of their class, but of the classes
    to which those images belong whose labels became unlikely most; then another trial may follow. All begin at stage 1.
    """
    labels, suspects, lines = np.asarray(data.labels), judged.suspects, []
    count, names = (
        len(suspects),
        [*(f"trial-{trial + 1}" for trial in range(config.trials)), "unlearn"],
    )
    if config.trials:
        suspects = first_of(
            judged.ranked, labels, np.maximum(1, np.bincount(labels) * count // len(labels))
        )
    for name in names:
        judged = suspect(judged.scores, judged.ranked, labels, suspects, config.unlearn.trusted)
        loop = unlearning_loop(stream(key, name), model, begun, data, judged, config.unlearn)
        state, more = fit(loop, hooks.within(name, max(1, config.unlearn.steps // 4)))
        lines = appended(lines, more)
        after = same_arrays(
            scores_of(model, state.variables, data, ("right", config.rescore, "entropy"))
        )
        hooks.say(
            f"{name}: moved in {int(state.carry.moves)} of {int(state.step)} steps; "
            f"{after['right'][judged.suspects].mean():.1%} of the suspects are still taken for their labels"
        )
        risen = ranking(judged.scores[config.rescore] - after[config.rescore], after["entropy"])[
            :count
        ]
        suspects = first_of(judged.ranked, labels, np.bincount(labels[risen]))
    return Unlearned(state.variables, judged, after, lines)


def make_dlp(config: DLPConfig, info: DataInfo) -> TrainingDefense:
    """DLP. Without stage 3 the model is what stage 1, or 2, leaves; without stage 2 nothing is unlearned.

    Suspects never keep their labels. What loses its label and is not dropped is learned from under the label that the model guesses.
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
        size, labels = len(data.labels), np.asarray(data.labels)
        judged = judge(model, begun, data, config.score, config.ratio, config.unlearn.trusted)
        variables, scores, lines = begun, judged.scores, []
        if "2" in config.stages:
            variables, judged, scores, lines = unlearn(
                config, key, model, data, begun, judged, hooks
            )
        found = {"suspects": judged.suspects}
        if "3" in config.stages:
            ranked, ties = scores[config.rescore], scores["entropy"]
            labelled = labelled_rows(
                ranked, ties, labels, judged.suspects, int(config.kept * size), config.least
            )
            if gone := sorted(set(labels.tolist()) - set(labels[labelled].tolist())):
                hooks.say(f"no image of {gone} keeps its label")
            if config.semi.method == "mixmatch" and not (info.crop or info.flip):
                hooks.say(
                    "the data allow neither crop nor flip: MixMatch guesses twice from the same images"
                )
            others = guessed_rows(
                ranked, ties, labelled, judged.suspects, int(config.dropped * size)
            )
            loop = semi_supervised_loop(
                stream(key, "semi"), model, variables, data, labelled, others, config.semi, info
            )
            state, more = fit(
                loop,
                hooks.within(
                    "semi", epoch_steps(max(len(labelled), len(others)), config.semi.batch_size)
                ),
            )
            variables, lines = state.variables, appended(lines, more)
            found |= {"rescored": ranked, "rescored_entropy": ties, "labelled": labelled}
        return Trained(variables, found_of(size, judged.scores, **found), trace_of(lines))

    def check(size: int) -> None:
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
