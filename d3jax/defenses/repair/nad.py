"""NAD, neural attention distillation (Li et al., ICLR 2021, arXiv 2101.05930).

A copy of the backdoored model is fine-tuned: the teacher. The backdoored model, the student, is
then trained on clean images so that its attention maps become the teacher's:

    L = CE + Σ_l β_l · mean (A_l(student) − A_l(teacher))²
    A_l = Σ_c |F_c|^p / (‖Σ_c |F_c|^p‖ + 1e-6)      for the features F of layer l

The norm of a map is over its pixels, and the mean over images and pixels.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.errors import ConfigError, did_you_mean, names
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables
from ...data.batching import epoch_plan
from ...training.loop import Hooks, fit, trace_of
from ...training.step import Loss, classification_loss
from .common import repair_loop
from .held_out import (
    check_divisible,
    held_out_option,
    judged_by,
    keep_best,
    no_best,
    traced_accuracy,
)

EARLY = OptimConfig(lr=0.1, nesterov=True, weight_decay=1e-4, schedule="early_drop")
"""The optimiser of the authors' program: 0.1 for a tenth of the epochs, and then 0.01."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NADConfig:
    """Settings of NAD, which distils the attention of a fine-tuned teacher into the model.

    They are a preset, and the values that differ from it. The preset `authors` is that of the
    authors' program for WideResNet-16-1: 20 epochs for teacher and student in batches of 64, and
    the maps of the last three stages. Their program keeps an epoch by test rates (`rule: oracle`).
    The preset `backdoorbench` trains the teacher for 10 epochs of its usual recipe, the student for
    10 epochs at the rate 0.01, and keeps the last weights.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of rule, teacher and schedule, where they are not given"
    )
    rule: Literal["defender", "oracle", "last"] = option(
        "defender",
        "choice of the student's epoch: the highest accuracy on held-out reserved images "
        "(defender); of those with a test accuracy above `least`, the lowest test ASR (oracle); or "
        "the last (last)",
    )
    layers: tuple[str, ...] = option(
        (), "names of the activations whose maps are compared (empty: those of the last stages)"
    )
    betas: tuple[float, ...] = option(
        (500.0, 1000.0, 1000.0), "β of each layer", low=0, filled=True
    )
    p: float = option(2.0, "p, exponent of the features", above=0)
    least: float = option(
        0.7,
        "lowest test accuracy of a kept epoch (rule: oracle; the first epoch, if none has it)",
        low=0,
        high=1,
    )
    held_out: float = held_out_option()
    teacher: ScheduleConfig = option(
        ScheduleConfig(epochs=20, batch_size=64, optimizer=EARLY),
        "length, batch size and optimiser of the teacher's fine-tuning",
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(epochs=20, batch_size=64, optimizer=EARLY),
        "length, batch size and optimiser of the student",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layers and len(self.layers) != len(self.betas):
            raise ConfigError(
                f"betas: {list(self.betas)} are {len(self.betas)}, want one for each of the "
                f"{len(self.layers)} layers"
            )

    def build(self, info: DataInfo) -> Repair:
        """Build the repair NAD with these settings for the data set that `info` describes."""
        return make_nad(self, info)


PRESETS = presets(
    "preset",
    NADConfig(preset="authors"),
    NADConfig(
        preset="backdoorbench",
        rule="last",
        teacher=ScheduleConfig(epochs=10, optimizer=OptimConfig(schedule="cosine_epoch_100")),
        schedule=ScheduleConfig(epochs=10, optimizer=OptimConfig(schedule="constant")),
    ),
)


def attention(features: jax.Array, p: float) -> jax.Array:
    """Return the normalised attention maps [B, N] of features [B, …, c] with N places.

    Features [B, c] have one place. Their map is 1 whatever they are, so it has no gradient.
    """
    maps = jnp.sum(jnp.abs(features.astype(jnp.float32)) ** p, -1).reshape(len(features), -1)
    return maps / (jnp.linalg.norm(maps, axis=1, keepdims=True) + 1e-6)


def distance_of_maps(student: jax.Array, teacher: jax.Array, p: float) -> jax.Array:
    """Return NAD's distance of two features: the mean squared difference of their attention."""
    return jnp.mean((attention(student, p) - attention(teacher, p)) ** 2)


def layers_of(config: NADConfig, model: Model) -> tuple[str, ...]:
    """Return the names of the activations whose maps NAD compares.

    By default they are the outputs of the last stages (`block2` …) with more than one place, one
    for each β. Raises `ConfigError` if the model has no such activations.
    """
    known = model.activations() if model.activations else {}
    stages = [
        name
        for name, one in known.items()
        if re.fullmatch(r"block\d+", name) and one.size > one.shape[-1]
    ]
    stages.sort(key=lambda name: int(name.removeprefix("block")))
    found = config.layers or tuple(stages[-len(config.betas) :])
    if len(found) < len(config.betas):
        raise ConfigError(
            f"layers: this model has {len(stages)} stages with a map, want {len(config.betas)}; "
            f"name layers among its activations, which are {names(known) or 'not known'}"
        )
    for name in found:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"layers: {name!r} is no activation of this model{hint}")
    return found


def nad_loss(model: Model, layers: tuple[str, ...], betas: tuple[float, ...], p: float) -> Loss:
    """Build NAD's loss of the student, with the teacher in `data.loss_inputs["teacher"]`.

    The student runs in train mode, the teacher with its stored statistics. The loss reports
    `clean_loss`, `distillation` and `accuracy`.
    """

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        taught = model.apply(data.loss_inputs["teacher"], batch.images, train=False)
        ce = cross_entropy(outputs.logits, batch.labels).mean()
        parts = [
            beta * distance_of_maps(outputs.features[layer], taught.features[layer], p)
            for layer, beta in zip(layers, betas, strict=True)
        ]
        distilled = sum(parts, jnp.float32(0))
        reported = {
            "clean_loss": ce,
            "distillation": distilled,
            "accuracy": accuracy(outputs.logits, batch.labels),
        }
        return ce + distilled, (outputs.batch_stats, reported)

    return loss


def make_nad(config: NADConfig, info: DataInfo) -> Repair:
    """Return NAD, the repair that distils a fine-tuned teacher's attention into the model.

    The trace is that of the student's training.

    Deviations: the rule `defender` is d3jax's. BackdoorBench's student makes four forward passes in
    a step, each of which moves the running statistics; here it makes one. Its third map is that of
    pooled features, which has no gradient; here it is that of the last stage.
    """

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
        test_set: Split | None = None,
        triggered_set: Split | None = None,
    ) -> Repaired:
        layers, inputs, learned = layers_of(config, model), {}, reserved
        if config.rule != "last":
            learned, inputs["judged"] = judged_by(config, key, reserved, test_set, triggered_set)
        if triggered_set is not None:
            inputs["triggered"] = triggered_set
        loop = repair_loop(
            stream(key, "teacher"), variables, learned,
            loss=classification_loss(model), schedule=config.teacher, info=info,
        )  # fmt: skip
        teacher = fit(loop, hooks.within("teacher"))[0].variables
        kept: dict[str, Any] = {}
        if config.rule != "last":
            size, schedule = len(learned.labels), config.schedule
            per_epoch, _ = epoch_plan(size, schedule.batch_size, drop_last=False)
            period = min(per_epoch, schedule.steps or per_epoch)
            kept = {"carry": no_best(variables), "advance": keep_best(score(model), period)}
        inputs = jax.tree.map(jnp.asarray, inputs) | {"teacher": teacher}
        loop = repair_loop(
            stream(key, "student"), variables, learned,
            loss=nad_loss(model, layers, config.betas, config.p), loss_inputs=inputs,
            schedule=config.schedule, info=info, **kept,
        )  # fmt: skip
        state, records = fit(loop, hooks.within("student"))
        found = state.carry["variables"] if kept else state.variables
        return Repaired(found, trace_of(records))

    def score(model: Model):
        """Return the `Score` of a student by the rule."""

        def judged(variables: Variables, data: Any) -> jax.Array:
            acc = traced_accuracy(model, variables, data.loss_inputs["judged"])
            if config.rule == "defender":
                return acc
            asr = traced_accuracy(model, variables, data.loss_inputs["triggered"])
            return jnp.where(acc > config.least, 1 - asr, -1.0)

        return judged

    def check(model: Model, shapes: Variables, size: int) -> None:
        layers_of(config, model)
        check_divisible(config.rule, size)

    needs = ("test_set", "triggered_set") if config.rule == "oracle" else ()
    rule = "" if config.rule == "last" else config.rule
    return Repair(repair, check, needs=needs, rule=rule)
