"""FST, feature shift tuning (Min, Qin, Shen & Cheng, NeurIPS 2023, arXiv 2310.01875).

Fine-tuning leaves features near those of the backdoored model. FST draws new weights W for
the classifier and keeps them away from their first values W₀, so that the features must shift:

    min_θ  CE + α · ⟨W, W₀⟩     with ‖W‖ = ‖W₀‖ after every step

On the sphere it is the relative of D3. ‖W − W₀‖² = 2‖W₀‖² − 2⟨W, W₀⟩, so both push along the same
tangent. D3 pushes with strength 1/‖W − W₀‖, stops where the clean loss is above its bound, and
weighs the clean loss by λ.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Params, Repair, Split, Variables
from ...training.loop import TrainLoop
from ...training.step import Loss
from .common import one_loop, repair_loop
from .d3 import geometry, project, select


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSTConfig:
    """Settings of FST, which pushes the classifier away from its initial weights.

    They are a preset, and the values that differ from it. The preset `authors` is that of the
    authors' program for CIFAR-10: α 0.1, and 10 epochs in batches of 128 without weight decay. They
    have 2 % of the training images (`reserved.fraction: 0.02`). For CIFAR-100 and Tiny ImageNet
    they take a smaller α. The preset `backdoorbench` is that of BackdoorBench's version, which the
    author of D3 wrote: α 0.2, and 100 epochs in batches of 256 without augmentation. It draws only
    the weights, and rescales them before the first step.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of alpha, redraw, rescale and schedule, where they are not given"
    )
    alpha: float = option(0.1, "α, strength of the push away from W₀", low=0, member=True)
    redraw: Literal["head", "weight", "none"] = option(
        "head", "what begins at U(±1/√d), for d features: weight and bias (head), or the weight"
    )
    rescale: bool = option(False, "rescale the redrawn weight to ‖W₀‖ before the first step")
    schedule: ScheduleConfig = option(
        ScheduleConfig(epochs=10, batch_size=128, optimizer=OptimConfig(weight_decay=0.0)),
        "length, batch size and optimiser",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair FST with these settings for the data set that `info` describes."""
        return make_fst(self, info)


PRESETS = presets(
    "preset",
    FSTConfig(preset="authors"),
    FSTConfig(
        preset="backdoorbench",
        alpha=0.2,
        redraw="weight",
        rescale=True,
        schedule=ScheduleConfig(augment="none", optimizer=OptimConfig()),
    ),
)

HEAD = "head/kernel"


def fst_loss(model: Model) -> Loss:
    """Build FST's loss CE + α⟨W, W₀⟩, with W₀ in `data.reference_params`.

    `data.loss_inputs` has `alpha`. The loss reports `clean_loss`, `accuracy` and the metrics of
    `d3.geometry`.
    """

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        ce = cross_entropy(outputs.logits, batch.labels).mean()
        reference = data.reference_params
        push = jnp.sum(params["head"]["kernel"] * reference["head"]["kernel"])
        reported = {"clean_loss": ce, "accuracy": accuracy(outputs.logits, batch.labels)}
        reported |= geometry(params, reference, select(params, HEAD))
        return ce + data.loss_inputs["alpha"] * push, (outputs.batch_stats, reported)

    return loss


def redrawn(key: jax.Array, params: Params, config: FSTConfig) -> Params:
    """Return a model's parameters with the classifier at FST's starting point."""
    if config.redraw == "none":
        return params
    head = params["head"]
    limit = len(head["kernel"]) ** -0.5
    names = ("kernel", "bias") if config.redraw == "head" else ("kernel",)
    drawn = {
        name: jax.random.uniform(stream(key, name), head[name].shape, jnp.float32, -limit, limit)
        for name in names
    }
    moved = params | {"head": head | drawn}
    return project(moved, params, select(params, HEAD)) if config.rescale else moved


def make_fst(config: FSTConfig, info: DataInfo) -> Repair:
    """Return FST, the repair that shifts features by pushing the classifier from its start.

    The trace holds `loss`, `clean_loss`, `accuracy` (of the batches), `distance`, `distance_ratio`
    and `cosine`.

    Deviation: an epoch is cut into equal batches, where the authors' code ends on a short one.
    """

    def loop(key: jax.Array, model: Model, variables: Variables, reserved: Split) -> TrainLoop:
        reference, selection = variables.params, select(variables.params, HEAD)
        place = jax.jit(lambda key, params: redrawn(key, params, config))
        begin = variables._replace(params=place(stream(key, "start"), reference))
        return repair_loop(
            stream(key, "steps"), begin, reserved,
            loss=fst_loss(model),
            project=lambda params, data: project(params, data.reference_params, selection),
            reference_params=reference, loss_inputs={"alpha": jnp.float32(config.alpha)},
            schedule=config.schedule, info=info,
        )  # fmt: skip

    def check(model: Model, shapes: Variables, size: int) -> None:
        select(shapes.params, HEAD, "fst")

    return one_loop(loop, check)
