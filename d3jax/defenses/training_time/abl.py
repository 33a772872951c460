"""ABL, anti-backdoor learning (Li et al., NeurIPS 2021, arXiv 2110.11571).

1. Isolation: a short training keeps the loss from falling below a threshold. The images with the
   lowest loss, which were learned fastest, are isolated.
2. Fine-tuning: training continues on all other images.
3. Unlearning: gradient ascent on the loss of the isolated images.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, option, presets
from ...config.loading import to_mapping
from ...config.recipes import OptimConfig, TrainConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import Batch, DataInfo, Model, Params, Split, Trained, TrainingDefense, Variables
from ...data.batching import epoch_plan
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.step import Loss, classification_loss
from ...training.unlearn import parts_of
from .suspicion import (
    ASCENT,
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
    suspected,
    training_loop,
    unlearning_loop,
)


def _unlearn(steps: int, batch_size: int, lr: float) -> UnlearnConfig:
    return UnlearnConfig(
        optimizer=dataclasses.replace(ASCENT, lr=lr),
        steps=steps,
        batch_size=batch_size,
        bounded=False,
    )


def _train(
    epochs: int,
    batch_size: int,
    augment: Literal["auto", "none", "cutout"],
    lr: float,
    schedule: Literal["constant", "drop"],
) -> TrainConfig:
    optimizer = OptimConfig(lr=lr, nesterov=True, weight_decay=1e-4, schedule=schedule)
    return TrainConfig(epochs=epochs, batch_size=batch_size, augment=augment, optimizer=optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ABLConfig:
    """Settings of ABL, which isolates the images that are learned fastest, to unlearn them.

    They are a preset, and the values that differ from it. The preset `authors` has 10 epochs of
    isolation (the paper: 20). It fine-tunes for 60 epochs, with a tenth of the learning rate from
    epoch 40. Unlearning takes 16 steps, which are 4 epochs of 500 isolated images. On a smaller
    set, 16 steps are more epochs and cost accuracy, so give fewer `steps` there. The preset is for
    the authors' WRN-16-1. At its learning rate, PreActResNet18 at width 64 becomes NaN within 20
    steps.

    The preset `backdoorbench` has 20 epochs of isolation, batches of 256 and no cutout. Unlearning
    takes 40 steps (20 epochs of 500 images). The learning rate is 0.01, and 1e-4 in unlearning.
    These are the values of BackdoorBench's program, which does not read those for fine-tuning and
    unlearning in its settings file.

    A part in a config file takes the values that it leaves out from the preset. A part made in
    Python has the defaults of its class.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of isolate, finetune and unlearn, where they are not given"
    )
    loss: Literal["flooding", "lga"] = option(
        "flooding",
        "isolation loss: |L − γ| + γ (flooding), or sign(L − γ) · L (lga, local gradient ascent)",
    )
    gamma: float = option(0.5, "γ, loss below which isolation does not train further", low=0)
    ratio: float = option(0.01, "share of the images that is isolated", above=0, high=0.5)
    isolate: TrainConfig = option(
        _train(10, 128, "none", 0.1, "constant"), "training recipe of the isolation"
    )
    finetune: TrainConfig = option(
        _train(60, 128, "cutout", 0.1, "drop"),
        "training recipe of the fine-tuning on all other images",
    )
    unlearn: UnlearnConfig = option(
        _unlearn(16, 128, 5e-4), "gradient ascent on the isolated images"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence ABL for the data set that `info` describes."""
        return make_abl(self, info)


PRESETS = presets(
    "preset",
    ABLConfig(preset="authors"),
    ABLConfig(
        preset="backdoorbench",
        isolate=_train(20, 256, "none", 0.01, "constant"),
        finetune=_train(60, 256, "auto", 0.01, "drop"),
        unlearn=_unlearn(40, 256, 1e-4),
    ),
)


def bounded_loss(value: jax.Array, kind: str, gamma: float) -> jax.Array:
    """Return ABL's isolation loss of a batch from the mean cross-entropy L and the bound γ.

    The kind "flooding" is |L − γ| + γ. The kind "lga", local gradient ascent, is sign(L − γ) · L.
    """
    if kind == "flooding":
        return jnp.abs(value - gamma) + gamma
    return jnp.sign(value - gamma) * value


def isolation_loss(config: ABLConfig, model: Model) -> Loss:
    """Build the loss of ABL's isolation: the mean cross-entropy, kept from falling below γ.

    `bounded_loss` does that. The model runs in train mode.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        value = bounded_loss(
            cross_entropy(outputs.logits, batch.labels).mean(), config.loss, config.gamma
        )
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def make_abl(config: ABLConfig, info: DataInfo) -> TrainingDefense:
    """Return ABL, a training-time defence that isolates the suspects and then unlearns them.

    The suspects are the isolated images. All other images keep their labels.
    """

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        return first_stage_loop(
            stream(key, "isolate"), model, data, config.isolate, info, isolation_loss(config, model)
        )

    def train(
        key: jax.Array, model: Model, data: Split, begun: Variables, hooks: Hooks = Hooks()
    ) -> Trained:
        size = len(data.labels)
        judged = judge(model, begun, data, "cross_entropy", config.ratio, config.unlearn.trusted)
        rest = np.setdiff1d(np.arange(size), judged.suspects)
        others = Split(*(np.asarray(part)[rest] for part in data))
        loop = training_loop(
            stream(key, "finetune"),
            begun,
            others,
            config.finetune,
            info,
            classification_loss(model),
        )
        state, lines = fit(
            loop, hooks.within("finetune", epoch_steps(len(rest), config.finetune.batch_size))
        )
        loop = unlearning_loop(
            stream(key, "unlearn"), model, state.variables, data, judged, config.unlearn
        )
        state, more = fit(loop, hooks.within("unlearn", max(1, config.unlearn.steps // 4)))
        isolated, moves = len(judged.suspects), int(state.carry.moves)
        each, _ = parts_of(
            config.unlearn.batch_size, config.unlearn.descent, config.unlearn.share, isolated
        )
        times = moves / epoch_plan(isolated, each, drop_last=False)[0]
        hooks.say(
            f"unlearn: {moves} of {config.unlearn.steps} steps unlearned suspects, "
            f"{times:.1f} passes over {isolated} isolated images"
        )
        found = found_of(size, judged.scores, suspects=judged.suspects, labelled=rest)
        return Trained(state.variables, found, trace_of(appended(lines, more)))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_ratio(config.ratio, size)
        check_batch("isolate", config.isolate.batch_size, size, "images")
        rest = size - suspected(size, config.ratio)
        check_batch("finetune", config.finetune.batch_size, rest, "images that are not isolated")
        check_unlearning(config.unlearn, size)

    def epoch(size):
        return epoch_steps(size, config.isolate.batch_size)

    settings = {"abl": to_mapping(config.isolate), "loss": config.loss, "gamma": config.gamma}
    return TrainingDefense(begin, settings, train, found_shapes, check, epoch)
