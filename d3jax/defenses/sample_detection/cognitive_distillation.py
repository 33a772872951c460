"""Cognitive distillation, a detector of poisoned samples (Huang et al., ICLR 2023).

Source: arXiv 2301.10908. For every image x, it learns the smallest mask m [H, W, 1] that keeps the
output f(x) of the model. The pixels outside the mask get a random colour c, drawn in every step:

    min_m  ‖f(x) − f(m·x + (1−m)·c)‖₁ / K + γ ‖m‖₁ + β TV(m),   m = (tanh z + 1) / 2

‖m‖₁ is the sum of the mask over its pixels. TV(m) is the sum of the squared differences of
neighbouring pixels, divided by the number of pixels. A trigger needs few pixels, so a small mask is
suspicious.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from ...config.fields import check_fields, option, presets
from ...core.checks import check_labelled
from ...core.errors import ConfigError
from ...core.images import as_float
from ...core.random import stream
from ...core.types import (
    Array,
    DataInfo,
    Model,
    SampleDetector,
    Scored,
    Split,
    TrainState,
    Variables,
)
from ...data.batched import batched_map
from ...runtime.compilation import fast
from ...training.loop import Hooks, TrainLoop, fit
from ...training.step import Advance, Batches, Loss, TrainData, init_state, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class CognitiveDistillationConfig:
    """Settings of cognitive distillation, which flags samples with a small mask.

    The preset `authors` is the authors' program. The preset `backdoorbench` has ten times the
    weight of the total variation.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of the weight β, where it is not given"
    )
    steps: int = option(100, "steps of Adam for every image", low=1)
    rate: float = option(0.1, "learning rate of Adam, with b1 0.1 and b2 0.1", above=0)
    gamma: float = option(0.01, "γ, weight of the size of the mask", low=0)
    beta: float = option(1.0, "β, weight of the total variation of the mask", low=0)
    spread: float = option(
        1.0, "standard deviations below the mean of clean images at which masks are small", low=0
    )
    batch_size: int = option(500, "number of masks that are learned at once", low=1)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build the cognitive distillation detector for the data set that `info` describes."""
        return make_cognitive_distillation(self, info)


PRESETS = presets(
    "preset",
    CognitiveDistillationConfig(preset="authors"),
    CognitiveDistillationConfig(preset="backdoorbench", beta=10.0),
)


def mask_of(raw: Float[jax.Array, "B H W 1"]) -> Float[jax.Array, "B H W 1"]:
    """Return the masks in [0, 1] of their raw parameters z."""
    return (jnp.tanh(raw) + 1) / 2


def variation(mask: Float[jax.Array, "B H W 1"]) -> Float[jax.Array, " B"]:
    """Return the total variation of each mask, by squares and relative to the number of pixels."""
    down, right = jnp.diff(mask, axis=1), jnp.diff(mask, axis=2)
    total = jnp.sum(down**2, (1, 2, 3)) + jnp.sum(right**2, (1, 2, 3))
    return total / (mask.shape[1] * mask.shape[2])


def distillation_loss(model: Model) -> Loss:
    """Build the loss of the masks of a batch, summed over the images.

    The parameters are the raw masks z. The batch is (images, logits [B, K] of the images, colours
    [B, 1, 1, C]). The model's variables are `data.reference_params`, and `data.loss_inputs`
    has γ and β. The loss reports the mean `distance` of the logits and the mean `size` of a mask.
    """

    def loss(raw, stats, batch, key, data):
        images, logits, colours = batch
        mask = mask_of(raw)
        hidden = mask * images + (1 - mask) * colours
        found = model.apply(data.reference_params, hidden, train=False).logits
        distance = jnp.abs(found.astype(jnp.float32) - logits).mean(-1)
        size, weights = mask.sum((1, 2, 3)), data.loss_inputs
        value = distance + weights["gamma"] * size + weights["beta"] * variation(mask)
        return value.sum(), (stats, {"distance": distance.mean(), "size": size.mean()})

    return loss


def mask_rows(step: jax.Array, steps: int, size: int, count: int) -> jax.Array:
    """Return the rows [size] of the images whose masks are learned at `step`.

    Consecutive batches of `count` images have `steps` steps each. The last batch is filled up with
    the last image.
    """
    return jnp.minimum(step // steps * size + jnp.arange(size), count - 1)


def mask_batches(steps: int, size: int) -> Batches:
    """Build the function that returns the batch of `distillation_loss` for a step.

    The images [N, H, W, C] uint8 and their logits are in `data.loss_inputs`. The colours of an
    image depend on its row and on the step of its batch, so not on the size of the batch.
    """

    def batches(key: jax.Array, step: jax.Array, data: TrainData) -> tuple[jax.Array, ...]:
        images, logits = data.loss_inputs["images"], data.loss_inputs["logits"]
        rows = mask_rows(step, steps, size, len(images))

        def colour(row: jax.Array) -> jax.Array:
            own = jax.random.fold_in(stream(key, "colours"), row)
            shape = (1, 1, images.shape[-1])
            return jax.random.uniform(jax.random.fold_in(own, step % steps), shape)

        return as_float(images[rows]), logits[rows], jax.vmap(colour)(rows)

    return batches


def next_masks(tx: optax.GradientTransformation, steps: int) -> Advance:
    """Build the `advance` that puts the sizes of finished masks into the carry [N].

    The next batch begins with z = 1 and a new state of the optimiser.
    """

    def advance(before: TrainState, after: TrainState, reported: Any, data: TrainData):
        raw = after.variables.params
        rows = mask_rows(before.step, steps, len(raw), len(after.carry))
        sizes = after.carry.at[rows].set(mask_of(raw).sum((1, 2, 3)))
        ones = jnp.ones_like(raw)
        fresh = dataclasses.replace(
            after, variables=Variables(ones, {}), opt_state=tx.init(ones), carry=sizes
        )
        last = after.step % steps == 0
        return jax.tree.map(lambda new, old: jnp.where(last, new, old), fresh, after), reported

    return advance


def mask_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    images: Array,
    config: CognitiveDistillationConfig,
) -> TrainLoop:
    """Build the `TrainLoop` that learns the masks of uint8 images [N, H, W, C], batch after batch.

    The carry [N] of the last state has the sizes ‖m‖₁ of all masks.
    """
    count, (height, width, _) = len(images), images.shape[1:]
    size = min(config.batch_size, count)
    tx = optax.adam(config.rate, b1=0.1, b2=0.1)
    step = make_train_step(
        tx,
        loss=distillation_loss(model),
        batches=mask_batches(config.steps, size),
        advance=next_masks(tx, config.steps),
    )
    compute = functools.partial(_logits, model, variables)
    inputs = {
        "images": jnp.asarray(images),
        "logits": jnp.asarray(batched_map(compute, images, batch_size=size)),
        "gamma": jnp.float32(config.gamma),
        "beta": jnp.float32(config.beta),
    }
    begin = Variables(jnp.ones((size, height, width, 1)), {})
    state = init_state(begin, tx, key, jnp.zeros(count))
    data = TrainData(None, None, {}, variables, inputs)
    return TrainLoop(step, state, data, -(-count // size) * config.steps)


@functools.partial(fast, static=1)
def _logits(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    return model.apply(variables, as_float(images), train=False).logits.astype(jnp.float32)


def make_cognitive_distillation(
    config: CognitiveDistillationConfig, info: DataInfo
) -> SampleDetector:
    """Return cognitive distillation, a `SampleDetector` that flags samples with a small mask.

    The score is −‖m‖₁. A sample is flagged if its ‖m‖₁ is more than `spread` standard deviations
    below the mean over the reserved images. Masks stay large where the logits of a triggered image
    also depend on the rest of the image. On the 12×12 images of `testing.make_fixture` the AUROC is
    therefore only 0.6.

    Deviations: the first term is a mean over the K logits, as in the authors' program, where the
    paper has a sum. Losses are summed over a batch, so that no mask depends on the other images.
    BackdoorBench flags masks that are larger than its threshold, and reads the poison flags for it.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        check_labelled("samples", samples)
        check_labelled("reserved", reserved)
        images = np.concatenate([np.asarray(samples.images), np.asarray(reserved.images)])
        loop = mask_loop(stream(key, "masks"), model, variables, images, config)
        state, _ = fit(loop, hooks.within("masks"))
        sizes, clean = np.split(np.asarray(state.carry), [len(samples.labels)])
        least = clean.mean() - config.spread * clean.std(ddof=1)
        return Scored(-sizes, sizes < least)

    def check(model: Model, shapes: Variables, samples: int, reserved: int) -> None:
        if reserved < 2:
            raise ConfigError(
                f"reserved: {reserved} clean images give no spread of their masks, want at least 2"
            )

    return SampleDetector(score, check)
