"""MCL: model-contrastive repair after trigger inversion (Yue et al., ACM MM 2023, arXiv 2205.04411).

A backdoored network gives triggered images features of their own. With the inverted trigger stamped on clean images, the features z of
the model in training are pulled to those that the backdoored one f_b gave the clean twins, away from those it gave the stamped:

    L = mean softplus((cos(z, z⁻) − cos(z, z⁺)) / τ)     z = φ(x̃), z⁺ = φ_b(x), z⁻ = φ_b(x̃), x̃ the stamped x.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.images import as_float
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import Array, Batch, DataInfo, Model, Params, Repair, Split, Variables
from ...data.batched import batched_map
from ...data.batching import epoch_plan
from ...inversion import InversionConfig, Trigger, stamp
from ...training.loop import TrainLoop
from ...training.step import Loss, TrainData
from .common import repair_loop
from .d3 import select
from .target import Search, Target, detector_option, searching, target_option

AUTHORS = ScheduleConfig(
    epochs=20,
    batch_size=64,
    augment="none",
    optimizer=OptimConfig(lr=0.1, weight_decay=1e-4, schedule="multistep"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MCLConfig:
    """A preset and what departs from it.

    `code` (the authors' release of 2023): no cross-entropy, BatchNorm sees stamped images alone; 20 epochs of batches of 64, no augmentation,
    SGD with momentum 0.9 and weight decay 1e-4, a rate of 0.1, a tenth of it from epoch 1, a hundredth from 10. `ours`: cross-entropy on the
    clean twins, which share a batch with the stamped, and fine-tuning's recipe for all else. What a config file leaves out of a schedule
    is the preset's; by hand `dataclasses.replace(MCLConfig().schedule, epochs=3)` changes a part of it.
    """

    preset: Literal["code", "ours"] = option(
        "code", "where clean_weight, batch_norm, drop_last and schedule come from unless given"
    )
    target: Target = target_option()
    detector: str = detector_option()
    tau: float = option(0.5, "τ, the temperature", above=0)
    clean_weight: float = option(0.0, "weight of the cross-entropy on the clean images", low=0)
    batch_norm: Literal["train", "fixed", "mixed"] = option(
        "train",
        "statistics of the stamped batch, the stored ones, or of clean and stamped images together",
    )
    head: str = option(
        "head/*",
        "glob of the classifier's parameters: nothing touches them where clean_weight is 0",
    )
    inversion: InversionConfig = option(InversionConfig(preset="pixel"), "how the trigger is found")
    detection: InversionConfig = option(
        InversionConfig, "how the target is found, where it is to be detected"
    )
    drop_last: bool = option(
        True, "leave the short last batch of an epoch out, instead of cutting it into equal ones"
    )
    schedule: ScheduleConfig = option(AUTHORS, "length, batch, optimiser")

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Return the repair for a data set."""
        return make_mcl(self, info)


PRESETS = presets(
    "preset",
    MCLConfig(preset="code"),
    MCLConfig(
        preset="ours",
        clean_weight=1.0,
        batch_norm="mixed",
        drop_last=False,
        schedule=ScheduleConfig(optimizer=OptimConfig()),
    ),
)


def contrast(
    z: Float[jax.Array, "B D"],
    positive: Float[jax.Array, "B D"],
    negative: Float[jax.Array, "B D"],
    tau: jax.Array | float = 0.5,
) -> Float[jax.Array, " B"]:
    """The model-contrastive loss of each row [B] for features [B, D]: softplus((cos(z, z⁻) − cos(z, z⁺)) / τ), in nats.

    With cosines in [0, 1] its floor is log(1 + exp(−1/τ)), 0.1269 at τ = 0.5. A feature of length 0 has cosine 0.
    """
    return jax.nn.softplus((cosine(z, negative) - cosine(z, positive)) / tau)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """cos ∠(a, b) of the rows [B] of [B, D]; 0, with gradient 0, where one has no length."""
    return (_unit(a) * _unit(b)).sum(-1)


def _unit(x: jax.Array) -> jax.Array:
    square = (x * x).sum(-1, keepdims=True)
    return x * jnp.where(square > 1e-24, jax.lax.rsqrt(jnp.maximum(square, 1e-24)), 0)


def mcl_loss(config: MCLConfig, model: Model) -> Loss:
    """The loss of MCL; reports the two cosines and, where there are clean images, their `clean_loss` and `accuracy`.

    The numbers come in `data.loss_inputs`: `tau`, `clean_weight`, the `trigger`, the features `positive` and `negative` [N, D] of all
    images or, where augmentation changes those from epoch to epoch, the backdoored model in `data.reference_params`.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: TrainData):
        loss_inputs, clean = data.loss_inputs, batch.images
        stamped = stamp(loss_inputs["trigger"], clean)
        if data.reference_params is None:
            positive, negative = (
                loss_inputs["positive"][batch.rows],
                loss_inputs["negative"][batch.rows],
            )
        else:
            positive, negative = (
                features_of(model, data.reference_params, images) for images in (clean, stamped)
            )
        train = config.batch_norm != "fixed"
        count = len(clean)

        def run(images, stats):
            return model.apply(Variables(params, stats), images, train=train)

        if config.batch_norm == "mixed":
            outputs = run(jnp.concatenate([clean, stamped]), batch_stats)
            z, logits = outputs.features["penultimate"][count:], outputs.logits[:count]
        else:
            outputs = run(stamped, batch_stats)
            z = outputs.features["penultimate"]
            if config.clean_weight:
                outputs = run(clean, outputs.batch_stats)
                logits = outputs.logits
        value = contrast(z, positive, negative, loss_inputs["tau"]).mean()
        reported = {
            "contrast": value,
            "near": cosine(z, positive).mean(),
            "far": cosine(z, negative).mean(),
        }
        if config.clean_weight or config.batch_norm == "mixed":
            ce = cross_entropy(logits, batch.labels).mean()
            reported |= {"clean_loss": ce, "accuracy": accuracy(logits, batch.labels)}
            value = value + loss_inputs["clean_weight"] * ce
        return value, (outputs.batch_stats, reported)

    return loss


def features_of(model: Model, variables: Variables, images: Array) -> jax.Array:
    """Penultimate features [B, D] in eval mode."""
    return model.apply(variables, images, train=False).features["penultimate"]


def targets_of(
    model: Model, variables: Variables, trigger: Trigger, reserved: Split, batch_size: int = 128
) -> dict[str, jax.Array]:
    """Return what the backdoored model's features are of all reserved images: `positive` of the clean, `negative` of the stamped, [N, D]."""

    @jax.jit
    def positive(levels: jax.Array) -> jax.Array:
        return features_of(model, variables, as_float(levels))

    @jax.jit
    def negative(levels: jax.Array) -> jax.Array:
        return features_of(model, variables, stamp(trigger, as_float(levels)))

    return {
        name: jnp.asarray(batched_map(compute, reserved.images, batch_size=batch_size))
        for name, compute in (("positive", positive), ("negative", negative))
    }


def make_mcl(config: MCLConfig, info: DataInfo) -> Repair:
    """MCL as a repair. The trace holds `loss`, `contrast`, the cosines `near` (to z⁺) and `far` (to z⁻), and clean numbers if any.

    Where detection flags no label the model stays as it is. The last epoch is kept. The authors measure accuracy without the target
    class; ACC counts all.
    """

    def loop(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, trigger: Trigger
    ) -> TrainLoop:
        loss_inputs: dict[str, Any] = {
            "tau": jnp.float32(config.tau),
            "clean_weight": jnp.float32(config.clean_weight),
            "trigger": trigger,
        }
        reference_params = variables
        if config.schedule.augment == "none":
            reference_params = None
            loss_inputs |= targets_of(model, variables, trigger, reserved)
        return repair_loop(
            stream(key, "steps"), variables, reserved,
            loss=mcl_loss(config, model), reference_params=reference_params, loss_inputs=loss_inputs, schedule=config.schedule, info=info,
            fixed=None if config.clean_weight else select(variables.params, config.head, "head"), drop_last=config.drop_last,
        )  # fmt: skip

    def check(model: Model, shapes: Variables, size: int) -> None:
        select(shapes.params, config.head, "head")
        epoch_plan(size, config.schedule.batch_size, drop_last=config.drop_last)

    search = Search(config.target, config.inversion, config.detection, config.detector)
    return searching(search, loop, info, check)
