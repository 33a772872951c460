"""I-BAU, implicit backdoor adversarial unlearning (Zeng et al., ICLR 2022, arXiv 2110.03735).

The repair is a minimax problem: a universal perturbation δ raises the loss of clean images, and the
model is trained to withstand it. δ depends on the weights θ, so the gradient of the outer loss has
an implicit part:

    min_θ  L_out(δ*(θ), θ)          δ*(θ) = argmin_δ  −CE(f(x + δ), y) + λ‖δ‖²
    dL/dθ = ∂_θ L_out + (∂_θ Φ)ᵀ v      v = (I − ∂_δ Φᵀ)⁻¹ ∂_δ L_out
    Φ(δ, θ) = δ − s ∇_δ [ −CE(f(x₀ + δ), y₀) + λ‖δ‖² ]

Φ is a step of descent on the inner problem. K steps of v ← ∂_δΦᵀ v + ∂_δ L_out approximate v.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig
from ...core.images import as_float, as_levels
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import Batch, DataInfo, Model, Repair, Repaired, Split, Variables
from ...data.augment import make_augment
from ...data.batching import epoch_plan
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.optim import make_optimizer
from ...training.split_loop import split_loop
from ...training.step import Loss, TrainData, init_state, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class IBAUConfig:
    """Settings of I-BAU, which unlearns a universal perturbation by implicit gradients.

    They are a preset, and the values that differ from it. The preset `backdoorbench` has Adam with
    amsgrad and learning rate 1e-4, batches of 256, and δ in normalised space. The preset `authors`
    has Adam with learning rate 1e-3, batches of 100, and δ in pixel space. The authors take 5,000
    test images as reserved ones, and a small VGG. Their README runs 3 rounds; here both presets
    have 5.

    A round is one pass over the reserved images that finds δ, and one that trains the model.
    """

    preset: Literal["backdoorbench", "authors"] = option(
        "backdoorbench", "source of space, batch_size and optimizer, where they are not given"
    )
    rounds: int = option(5, "rounds of finding δ and training", low=1)
    steps: int = option(5, "K, steps that approximate the implicit gradient", low=1)
    space: Literal["normalised", "pixel"] = option(
        "normalised", "space of δ: that of the normalised images, or that of pixels in [0, 1]"
    )
    inner_rate: float = option(10.0, "learning rate of δ", above=0)
    decay: float = option(0.001, "λ, weight of ‖δ‖² in the inner problem", low=0)
    map_rate: float = option(0.1, "s, length of the step Φ", above=0)
    share: float = option(
        0.01, "share of a batch on which δ is pasted in the outer problem", above=0, high=1
    )
    batch_size: int = option(256, "images per step", low=1)
    augment: Literal["auto", "none"] = option(
        "auto", "data augmentation; auto: the crop and flip that the data set allows"
    )
    optimizer: OptimConfig = option(
        OptimConfig(name="amsgrad", lr=1e-4, weight_decay=0.0, schedule="constant"),
        "optimiser of the model",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair I-BAU with these settings for the data set that `info` describes."""
        return make_ibau(self, info)


PRESETS = presets(
    "preset",
    IBAUConfig(preset="backdoorbench"),
    IBAUConfig(
        preset="authors",
        space="pixel",
        batch_size=100,
        optimizer=OptimConfig(name="adam", lr=1e-3, weight_decay=0.0, schedule="constant"),
    ),
)


def implicit(
    inner_map: Any, outer: Any, change: jax.Array, params: Any, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Return (surrogate, v): the gradient of the surrogate by `params` is I-BAU's hypergradient.

    `inner_map(change, params)` is Φ, and `outer(change, params)` the loss L_out. v is that of
    `steps` steps of the fixed-point iteration from 0.
    """
    fixed = jax.lax.stop_gradient(params)
    slope = jax.grad(outer)(change, fixed)
    _, back = jax.vjp(lambda change: inner_map(change, fixed), change)
    v = jnp.zeros_like(change)
    for _ in range(steps):  # not a loop of XLA, in which convolutions are slow on CPU
        v = back(v)[0] + slope
    v = jax.lax.stop_gradient(v)
    return outer(change, params) + jnp.sum(v * inner_map(change, params)), v


def inner_value(
    model: Model, variables: Variables, images: jax.Array, labels: jax.Array, change: jax.Array,
    decay: float, scale: jax.Array,
) -> jax.Array:  # fmt: skip
    """Return the inner loss −CE(f(x + δ), y) + λ‖δ‖²; `scale` turns δ into pixels."""
    logits = model.apply(variables, images + change * scale, train=False).logits
    return -cross_entropy(logits, labels).mean() + decay * jnp.sum(change**2)


def perturb_loss(model: Model, decay: float, scale: jax.Array) -> Loss:
    """Build the loss of δ against the model's own predictions; its parameters are {"change"}.

    The model is in `data.loss_inputs["variables"]`, with its stored statistics.
    """

    def loss(params, batch_stats, batch, key, data):
        variables = data.loss_inputs["variables"]
        own = model.apply(variables, batch.images, train=False).logits.argmax(-1)
        given = (batch.images, own, params["change"], decay, scale)
        return inner_value(model, variables, *given), (batch_stats, {})

    return loss


def unlearn_loss(model: Model, config: IBAUConfig, scale: jax.Array) -> Loss:
    """Build the outer loss with I-BAU's hypergradient; δ is in `data.loss_inputs["change"]`.

    The inner problem is that of the first batch, `data.loss_inputs["first"]`, and its true labels.
    Each step draws ⌊share · B⌋ images, at least one, and pastes δ on them.
    """

    def loss(params, batch_stats, batch, key, data):
        inputs, size = data.loss_inputs, len(batch.labels)
        first, change = inputs["first"], inputs["change"]
        pasted = jax.random.permutation(key, size) < max(1, int(config.share * size))
        pasted = pasted[:, None, None, None]

        def outer(change: jax.Array, params: Any) -> jax.Array:
            images = batch.images + jnp.where(pasted, change * scale, 0)
            logits = model.apply(Variables(params, batch_stats), images, train=False).logits
            return cross_entropy(logits, batch.labels).mean()

        def inner_map(change: jax.Array, params: Any) -> jax.Array:
            def value(change: jax.Array) -> jax.Array:
                given = (Variables(params, batch_stats), first.images, first.labels, change)
                return inner_value(model, *given, config.decay, scale)

            return change - config.map_rate * jax.grad(value)(change)

        value, v = implicit(inner_map, outer, change, params, config.steps)
        shown = outer(change, jax.lax.stop_gradient(params))
        logits = model.apply(Variables(params, batch_stats), batch.images, train=False).logits
        reported = {
            "outer_loss": shown,
            "accuracy": accuracy(logits, batch.labels),
            "perturbation": optax.tree.norm(change),
            "implicit": optax.tree.norm(v),
        }
        return value, (batch_stats, reported)

    return loss


def stored_batches(
    key: jax.Array, reserved: Split, batch_size: int, augment: Any
) -> tuple[Split, int]:
    """Return the reserved images in a random order, augmented once, and the number of batches.

    Batches are consecutive rows of equal size; at most a few images are left out.
    """
    count, size = epoch_plan(len(reserved.labels), batch_size, drop_last=False)
    rows = np.asarray(jax.random.permutation(stream(key, "order"), len(reserved.labels)))
    rows = rows[: count * size]
    images = augment(stream(key, "augment"), as_float(jnp.asarray(reserved.images)[rows]))
    return Split(as_levels(images).astype(jnp.uint8), jnp.asarray(reserved.labels)[rows]), count


def make_ibau(config: IBAUConfig, info: DataInfo) -> Repair:
    """Return I-BAU, the repair that unlearns a universal perturbation by implicit gradients.

    BatchNorm uses its stored statistics throughout. The trace is that of the model's training:
    `loss`, `outer_loss`, `accuracy`, the norm `perturbation` of δ, and that of v, `implicit`. The
    loss is the surrogate whose gradient is the hypergradient.

    Deviations: batches have equal sizes. As in BackdoorBench's program, neither δ nor the images
    are clipped, and the images of the second pass are augmented once for all rounds.
    """
    scale = jnp.asarray(info.std, jnp.float32) if config.space == "normalised" else jnp.float32(1)
    augment = make_augment(info, config.augment)

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        batch_size = config.batch_size
        stored, count = stored_batches(key, reserved, batch_size, augment)
        size = len(stored.labels) // count
        first = Batch(as_float(stored.images[:size]), stored.labels[:size], jnp.zeros(size, bool))
        zero = jnp.zeros((1, *info.shape))
        total = config.rounds * count
        tx = make_optimizer(config.optimizer, steps=total, steps_per_epoch=count)
        step = make_train_step(
            tx, loss=unlearn_loss(model, config, scale), batches=consecutive(count, size)
        )
        state = init_state(variables, tx, stream(key, "unlearn"))
        inner = perturb_loss(model, config.decay, scale)
        perturbing, records = None, []
        for one in range(config.rounds):
            inputs = {"variables": state.variables}
            begin = Variables({"change": zero}, {})
            loop = split_loop(
                jax.random.fold_in(stream(key, "perturb"), one), begin, reserved,
                loss=inner, tx=optax.sgd(config.inner_rate), steps=count, steps_per_epoch=count,
                batch_size=size, augment=augment, loss_inputs=inputs,
            )  # fmt: skip
            perturbing = perturbing or loop.step  # one program for all rounds
            found, _ = fit(loop._replace(step=perturbing), hooks.within(f"perturb{one}"))
            inputs = {"change": found.variables.params["change"], "first": first}
            data = TrainData(stored, jnp.zeros(len(stored.labels), bool), {}, None, inputs)
            loop = TrainLoop(step, state, data, (one + 1) * count)
            state, more = fit(loop, hooks.within(f"unlearn{one}"))
            records += more
        return Repaired(state.variables, trace_of(records))

    return Repair(repair)


def consecutive(count: int, size: int):
    """Build a batch source that takes `count` batches of `size` consecutive images in turn."""

    def batches(key: jax.Array, step: jax.Array, data: TrainData) -> Batch:
        rows = (step % count) * size + jnp.arange(size)
        images, labels, poisoned = (part[rows] for part in data.resident())
        return Batch(as_float(images), labels, poisoned)

    return batches
