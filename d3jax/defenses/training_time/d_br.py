"""D-BR, backdoor removal by unlearning suspects and relearning trusted images.

Source: Chen, Wu & Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
NeurIPS 2022, and the authors' program.

1. Feature consistency (`consistency`) separates trusted images D_c and suspects D_p.
2. A model is trained from scratch on all images, and learns the backdoor.
3. Every epoch of the removal (`removal`) has a pass of gradient ascent on the cross-entropy of D_p,
   and then a pass of descent on that of D_c.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, TrainConfig
from ...core.errors import ConfigError, refuse
from ...core.random import stream
from ...core.types import DataInfo, Model, Split, Trained, TrainingDefense, Variables
from ...training.loop import Hooks, fit, trace_of
from ...training.step import classification_loss
from ..repair.held_out import divide, judged_by
from .consistency import (
    SeparationConfig,
    check_separation,
    counts_of,
    first_stage_of,
    found_of,
    separate,
    short_separation,
)
from .removal import Removal, removal_loop
from .suspicion import appended, check_batch, epoch_steps, first_stage_loop

CONSTANT = OptimConfig(lr=1e-4, schedule="constant")
"""The optimiser of the authors' removal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBRConfig:
    """Settings of D-BR, which unlearns the images whose features change most when transformed.

    D-BR assumes that rotation and shift change the features of poisoned images most. It needs no
    clean images. On a clean set it also unlearns 5 % of the images.

    The presets are:

    - `authors`: 2 and 10 epochs of the separation, 200 of the model, 20 of the removal.
    - `backdoorbench`: a model of BackdoorBench's 100 epochs, and the last epoch of the removal.
    - `short`, for two CPU cores: 3 epochs of the separation's second training (authors: 10), 12 of
      the model (200) and 10 of the removal (20). The model's learning rate falls from 0.05 to 0 by
      a cosine. With 50,000 images, these are about one million training images.
    """

    preset: Literal["authors", "backdoorbench", "short"] = option(
        "authors", "source of the values that are not given"
    )
    separation: SeparationConfig = option(SeparationConfig(), "separation into D_c and D_p")
    train: TrainConfig = option(
        TrainConfig(epochs=200, optimizer=OptimConfig(schedule="half_drop")),
        "training recipe of the model, from scratch on all images",
    )
    ascent: float = option(1e-4, "learning rate of the ascent on D_p, which is constant", above=0)
    relearn: TrainConfig = option(
        TrainConfig(epochs=20, optimizer=CONSTANT),
        "recipe of the removal: epochs, images per step, and the optimiser of the descent on D_c "
        "(sgd), whose momentum and weight decay the ascent shares",
    )
    rule: Literal["defender", "oracle", "last"] = option(
        "defender",
        "epoch of the removal that is kept: the highest accuracy on held-out images of D_c minus "
        "accuracy on those of D_p (defender, d3jax's), the highest test ACC − ASR (oracle, the "
        "authors'), or the last (BackdoorBench's)",
    )
    held_out: float = option(
        0.1,
        "share of D_c and of D_p that the removal does not learn from (rule: defender; d3jax's)",
        above=0,
        high=0.5,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        name = self.relearn.optimizer.name
        refuse(name != "sgd", f"relearn.optimizer.name: {name!r} does not apply to D-BR, want sgd")

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence D-BR for the data set that `info` describes."""
        return make_d_br(self, info)


PRESETS = presets(
    "preset",
    DBRConfig(preset="authors"),
    DBRConfig(preset="backdoorbench", train=TrainConfig(), rule="last"),
    DBRConfig(
        preset="short",
        separation=short_separation(),
        train=TrainConfig(epochs=12, optimizer=OptimConfig(lr=0.05)),
        relearn=TrainConfig(epochs=10, optimizer=CONSTANT),
    ),
)


def removal_data(
    config: DBRConfig,
    key: jax.Array,
    suspects: Split,
    trusted: Split,
    test_set: Split | None,
    triggered_set: Split | None,
) -> Removal:
    """Return D_p and D_c with the sets by which the rule chooses an epoch, as `Removal`.

    Raises `TypeError` if the rule is oracle and a set is missing.
    """
    if config.rule == "last":
        return Removal(suspects, trusted)
    trusted, judged = judged_by(config, stream(key, "trusted"), trusted, test_set, triggered_set)
    if config.rule == "defender":
        suspects, triggered_set = divide(stream(key, "suspects"), suspects, config.held_out)
    return Removal(suspects, trusted, judged, triggered_set)


def make_d_br(config: DBRConfig, info: DataInfo) -> TrainingDefense:
    """Return D-BR, a training-time defence that unlearns suspects and relearns trusted images.

    `found` is that of `consistency.found_shapes`.

    Deviations: the rule `defender` is d3jax's, and it holds images out. The authors' model has a
    second drop of the learning rate, after three quarters of its epochs. Of equally good epochs the
    first is kept. The last batch of D_p is as large as the others.
    """

    def train(
        key: jax.Array,
        model: Model,
        data: Split,
        begun: Variables,
        hooks: Hooks = Hooks(),
        *,
        test_set: Split | None = None,
        triggered_set: Split | None = None,
    ) -> Trained:
        found = separate(key, model, data, begun, config.separation, info, hooks)
        suspects, trusted = (
            Split(*(np.asarray(part)[rows] for part in data))
            for rows in (found.poisoned, found.clean)
        )
        removal = removal_data(config, key, suspects, trusted, test_set, triggered_set)
        loop = first_stage_loop(
            stream(key, "model"), model, data, config.train, info, classification_loss(model)
        )
        period = epoch_steps(len(data.labels), config.train.batch_size)
        state, more = fit(loop, hooks.within("model", period))
        lines = appended(found.lines, more)
        key = stream(key, "removal")
        loop, period = removal_loop(
            key, model, state.variables, removal, config.ascent, config.relearn, info
        )
        state, more = fit(loop, hooks.within("removal", period))
        kept = state.variables if config.rule == "last" else state.carry["variables"]
        return Trained(kept, found_of(found), trace_of(appended(lines, more)))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_separation(config.separation, model, size)
        check_batch("train", config.train.batch_size, size, "images")
        trusted, suspects = counts_of(size, config.separation)
        if config.rule == "defender":
            if suspects < 2:
                raise ConfigError("rule: defender holds suspects out, and there is one suspect")
            trusted -= max(1, round(config.held_out * trusted))
        check_batch("relearn", config.relearn.batch_size, trusted, "trusted images")

    shared = first_stage_of(config.separation, info)
    needs = ("test_set", "triggered_set") if config.rule == "oracle" else ()
    rule = "" if config.rule == "last" else config.rule
    return TrainingDefense(**shared, train=train, check=check, needs=needs, rule=rule)
