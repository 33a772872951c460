"""MCL, a model-contrastive repair after trigger inversion (Yue et al., ACM MM 2023).

Source: arXiv 2205.04411. A backdoored network maps triggered images to features of their own. MCL
stamps the inverted trigger on clean images x, which gives x̃. It trains on the features z of x̃. It
pulls them to the backdoored model's features of x, and pushes them from its features of x̃:

    L = mean softplus((cos(z, z⁻) − cos(z, z⁺)) / τ)     z = φ(x̃), z⁺ = φ_b(x), z⁻ = φ_b(x̃)

where φ are the features of the model in training and φ_b those of the backdoored model.
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
"""The schedule of the authors' release."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MCLConfig:
    """Settings of MCL, which pulls features of triggered images to those of clean images.

    They are a preset, and the values that differ from it. The preset `code` (the authors' release
    of 2023) has no cross-entropy, and its BatchNorm sees stamped images only. It trains for 20
    epochs of batches of 64, without augmentation. SGD has momentum 0.9 and weight decay 1e-4. The
    learning rate is 0.1, a tenth of it from epoch 1, and a hundredth from epoch 10.

    The preset `ours` is d3jax's. It adds cross-entropy on the clean images, which share a batch
    with the stamped ones. Everything else is fine-tuning's recipe.

    A schedule in a config file takes the values that it leaves out from the preset. In Python,
    `dataclasses.replace(MCLConfig().schedule, epochs=3)` changes a part of the schedule.
    """

    preset: Literal["code", "ours"] = option(
        "code",
        "source of clean_weight, batch_norm, drop_last and schedule, where they are not given",
    )
    target: Target = target_option()
    detector: str = detector_option()
    tau: float = option(0.5, "τ, temperature of the contrastive loss", above=0)
    clean_weight: float = option(0.0, "weight of the cross-entropy on the clean images", low=0)
    batch_norm: Literal["train", "fixed", "mixed"] = option(
        "train",
        "BatchNorm statistics: of the stamped batch (train), the stored ones (fixed), or of clean "
        "and stamped images together (mixed)",
    )
    head: str = option(
        "head/*",
        "glob of the classifier's parameters, which are not trained if clean_weight is 0",
    )
    inversion: InversionConfig = option(
        InversionConfig(preset="pixel"), "inversion that finds the trigger"
    )
    detection: InversionConfig = option(
        InversionConfig, "inversion that finds the target class, where target is detect"
    )
    drop_last: bool = option(
        True, "drop the short last batch of an epoch, instead of cutting it into equal batches"
    )
    schedule: ScheduleConfig = option(AUTHORS, "length, batch size and optimiser")

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Build the repair MCL with these settings for the data set that `info` describes."""
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
    """Return MCL's contrastive loss [B] of features against positive and negative ones, in nats.

    `z`, `positive` and `negative` are [B, D]. It is softplus((cos(z, z⁻) − cos(z, z⁺)) / τ). With
    cosines in [0, 1], its minimum is log(1 + exp(−1/τ)), which is 0.1269 at τ = 0.5. A feature of
    length 0 has cosine 0.
    """
    return jax.nn.softplus((cosine(z, negative) - cosine(z, positive)) / tau)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the cosines [B] of the angles between the rows of `a` and `b`, both [B, D].

    The cosine and its gradient are 0 where one of the rows has length 0.
    """
    return (_unit(a) * _unit(b)).sum(-1)


def _unit(x: jax.Array) -> jax.Array:
    """Return the rows of `x` [B, D] scaled to length 1; rows of length 0 stay 0."""
    square = (x * x).sum(-1, keepdims=True)
    return x * jnp.where(square > 1e-24, jax.lax.rsqrt(jnp.maximum(square, 1e-24)), 0)


def mcl_loss(config: MCLConfig, model: Model) -> Loss:
    """Build MCL's loss: the mean contrastive loss plus the weighted cross-entropy on clean images.

    `data.loss_inputs` holds `tau`, `clean_weight` and the `trigger`. It also holds the backdoored
    model's features of all images, `positive` and `negative` [N, D]. If augmentation changes the
    images from epoch to epoch, `data.reference_params` holds the backdoored model instead.

    The loss reports `contrast` and the cosines `near` (to z⁺) and `far` (to z⁻). If the model sees
    clean images, it also reports their `clean_loss` and `accuracy`.
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
    """Return a model's penultimate features [B, D] of images, in eval mode."""
    return model.apply(variables, images, train=False).features["penultimate"]


def targets_of(
    model: Model, variables: Variables, trigger: Trigger, reserved: Split, batch_size: int = 128
) -> dict[str, jax.Array]:
    """Return the backdoored model's features of all reserved images, without and with the trigger.

    `positive` [N, D] are those of the clean images, `negative` [N, D] those of the stamped images.
    """

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
    """Return MCL, the repair that pulls the features of triggered images to those of clean images.

    The trace holds `loss`, `contrast`, and the cosines `near` (to z⁺) and `far` (to z⁻). It also
    holds `clean_loss` and `accuracy` if the model sees clean images.

    If the detection flags no class, the repair returns the model unchanged. The result is the model
    after the last epoch. The authors measure accuracy without the target class; ACC counts all
    classes.
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
            loss=mcl_loss(config, model), reference_params=reference_params,
            loss_inputs=loss_inputs, schedule=config.schedule, info=info,
            fixed=None if config.clean_weight else select(variables.params, config.head, "head"),
            drop_last=config.drop_last,
        )  # fmt: skip

    def check(model: Model, shapes: Variables, size: int) -> None:
        select(shapes.params, config.head, "head")
        epoch_plan(size, config.schedule.batch_size, drop_last=config.drop_last)

    search = Search(config.target, config.inversion, config.detection, config.detector)
    return searching(search, loop, info, check)
