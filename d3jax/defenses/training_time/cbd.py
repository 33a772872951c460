"""CBD, causality-inspired backdoor defence (Zhang et al., CVPR 2023, arXiv 2303.06818).

1. A net f_b is trained on all images for few epochs. It learns the backdoor sooner than the task.
2. A new net f_c is trained on all images. With the losses ℓ_b and ℓ_c of both nets, an image has
   the weight w = ℓ_b / (ℓ_b + ℓ_c + 1e-8), rescaled to the mean 1 in the batch. Images that f_b has
   learned count little.

f_c is the result. f_b is frozen in stage 2, and runs in eval mode.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...config.fields import check_fields, option, presets
from ...config.loading import to_mapping
from ...config.recipes import OptimConfig, TrainConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import Batch, DataInfo, Model, Params, Split, Trained, TrainingDefense, Variables
from ...metrics.sample_scores import scores_of
from ...runtime.distributed import same_arrays
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.step import Loss, classification_loss
from .suspicion import (
    check_batch,
    drops_option,
    epoch_steps,
    first_stage_loop,
    training_loop,
)

EPSILON = 1e-8
"""The constant in the denominator of the weight, which is the authors'."""


def _recipe(epochs: int) -> TrainConfig:
    optimizer = OptimConfig(lr=0.1, nesterov=True, weight_decay=1e-4, schedule="constant")
    return TrainConfig(epochs=epochs, batch_size=64, augment="cutout", optimizer=optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CBDConfig:
    """Settings of CBD, which trains on images by how little a backdoored net has learned them.

    CBD assumes only that the backdoor is learned faster than the task. It flags and drops no image.
    Easy clean images also count less, on a clean set too. If f_b has learned the task as well, the
    weight rests on few images, and accuracy is lost. If f_b is not sure of the poisoned images, f_c
    learns the backdoor.

    The settings are a preset, and the values that differ from it. The preset `authors` has the
    values of the authors' program: 5 epochs for f_b and 100 for f_c, on WRN-16-1. The learning rate
    of f_c is 0.1, and falls to 0.01 at epoch 20 and to 0.001 at epoch 70. On PreActResNet18 at
    width 64, give 0.01: ABL's training with this optimiser becomes NaN there (docs/departures.md).
    The preset `short` is for two CPU cores. It has 2 of the 5 epochs and 14 of the 100, with the
    drops at the same shares. One epoch for f_b would be in proportion, but the backdoor may need
    two.

    Deviations: the short last batch of an epoch is dropped. The term that disentangles the features
    of both nets is left out. It is off in the authors' program.
    """

    preset: Literal["authors", "short"] = option(
        "authors", "source of biased and train, where they are not given"
    )
    biased: TrainConfig = option(_recipe(5), "training recipe of the backdoored net f_b")
    train: TrainConfig = option(_recipe(100), "training recipe of the net f_c, which is the result")
    drops: tuple[float, ...] = drops_option(
        (0.2, 0.7),
        "shares of f_c's epochs after which the learning rate falls to a tenth, besides the "
        "schedule of train",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence CBD for the data set that `info` describes."""
        return make_cbd(self, info)


PRESETS = presets(
    "preset",
    CBDConfig(preset="authors"),
    CBDConfig(preset="short", biased=_recipe(2), train=_recipe(14)),
)


def sample_weights(
    biased: Float[jax.Array, " B"], own: Float[jax.Array, " B"]
) -> Float[jax.Array, " B"]:
    """Return CBD's weight of each image of a batch, from the losses of f_b and of f_c.

    It is w = ℓ_b / (ℓ_b + ℓ_c + 1e-8), rescaled to the mean 1. Where f_b's losses are all 0, the
    weights are 0, and not NaN as in the authors' program.
    """
    weights = biased / (biased + own + EPSILON)
    return weights * len(weights) / jnp.maximum(weights.sum(), 1e-12)


def cbd_loss(model: Model) -> Loss:
    """Build the loss of f_c: the weighted mean of the cross-entropies of a batch.

    The weights are constants for the gradient. `data.loss_inputs` are the variables of f_b, which
    runs in eval mode on the same augmented images.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        other = model.apply(data.loss_inputs, batch.images, train=False)
        own = cross_entropy(outputs.logits, batch.labels)
        weights = sample_weights(cross_entropy(other.logits, batch.labels), own)
        value = (jax.lax.stop_gradient(weights) * own).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def make_cbd(config: CBDConfig, info: DataInfo) -> TrainingDefense:
    """Return CBD, a training-time defence that gives little weight to images learned fast.

    `found` has `cross_entropy`, the loss of f_b, and `weight`, the weight of every image after the
    training, before it is rescaled. Low values are suspicious. No image is a suspect, and all keep
    their labels.
    """

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        return first_stage_loop(
            stream(key, "biased"), model, data, config.biased, info, classification_loss(model)
        )

    def train(
        key: jax.Array, model: Model, data: Split, begun: Variables, hooks: Hooks = Hooks()
    ) -> Trained:
        size = len(data.labels)
        start = model.init(stream(key, "init"))
        loop = training_loop(
            stream(key, "train"), start, data, config.train, info, cbd_loss(model),
            drops=config.drops, loss_inputs=begun,
        )  # fmt: skip
        state, lines = fit(loop, hooks.within("train", epoch_steps(size, config.train.batch_size)))
        biased, own = (
            same_arrays(scores_of(model, variables, data, ("cross_entropy",)))["cross_entropy"]
            for variables in (begun, state.variables)
        )
        found = {
            "cross_entropy": biased,
            "weight": (biased / (biased + own + np.float32(EPSILON))).astype(np.float32),
            "suspects": np.zeros(size, bool),
            "labelled": np.ones(size, bool),
        }
        return Trained(state.variables, found, trace_of(lines))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_batch("biased", config.biased.batch_size, size, "images")
        check_batch("train", config.train.batch_size, size, "images")

    def epoch(size: int) -> int:
        return epoch_steps(size, config.biased.batch_size)

    return TrainingDefense(
        begin, {"cbd": to_mapping(config.biased)}, train, found_by_weight, check, epoch
    )


def found_by_weight(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what CBD reports on `size` training images, by name."""
    kinds = dict.fromkeys(("cross_entropy", "weight"), jnp.float32)
    kinds |= dict.fromkeys(("suspects", "labelled"), jnp.bool_)
    return {name: jax.ShapeDtypeStruct((size,), kind) for name, kind in kinds.items()}
