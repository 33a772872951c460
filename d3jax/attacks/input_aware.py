"""The Input-aware attack: a network makes a separate trigger for every image.

Source: Nguyen and Tran 2020, arXiv 2010.08138.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.errors import refuse
from ..core.random import stream
from ..core.types import (
    Array,
    Attack,
    Batch,
    DataInfo,
    Dataset,
    Joint,
    Preparation,
    Prepared,
    Variables,
)
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from ..models.trigger_networks import generator
from ..training.loop import TrainLoop, fit
from ..training.optim import two_drops
from ..training.split_loop import split_loop
from .cross_copies import cross_option, heads, others, put_first
from .poisoning import Mode, dirty_label, labeller, mode_option, rate_option, target_option

TINY = 1e-7
"""A small number that keeps quotients and gradients of square roots finite."""


@dataclasses.dataclass(frozen=True)
class InputAwareConfig:
    """Settings of the Input-aware attack, in which a network makes a trigger for every image.

    The defaults are the paper's losses and nets. The mask net's 25 epochs are added before the
    training and do not shorten it.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    cross_ratio: float = cross_option(1.0)
    width: int = option(
        32,
        "channels of the generator's and mask net's first stage (32: the published nets)",
        low=1,
        high=MOST_CHANNELS,
    )
    density: float = option(0.032, "share of the image that a mask may cover", low=0, high=1)
    mask_weight: float = option(
        100.0, "λ_norm: weight of the mask's density in the mask net's loss", low=0
    )
    diversity: float = option(
        1.0, "λ_div: weight of the diversity of masks and triggers in their losses", low=0
    )
    mask_epochs: int = option(25, "passes over the training set to train the mask net", low=1)
    mask_steps: int = option(
        0, "steps to train the mask net (0: as many as mask_epochs passes have)", low=0
    )
    mask_batch: int = option(128, "images per step of the mask net's training", low=2)
    lr: float = option(
        0.01,
        "Adam's learning rate for both nets; the mask net's is divided by ten at 0.4 and 0.8 of "
        "its steps",
        above=0,
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the Input-aware attack with these settings for the data set of `info`."""
        return make_input_aware(self, info)


def make_input_aware(config: InputAwareConfig, info: DataInfo) -> Attack:
    """Return the Input-aware `Attack`, in which a network makes a trigger for every image.

    The stamped image is x + (G(x) − x) · M(x). The trigger is
    `{"generator": Variables, "mask": Variables}`.

    The mask net M is trained first and then frozen. The generator G is trained together with the
    model. Its loss is the model's loss plus λ_div · mean of ‖x − x′‖ / ‖G(x) − G(x′)‖. The norms
    are root mean squares of pixels as the model sees them, that is divided by the data set's
    deviation. In every batch the first ⌊rate·B⌋ images get their own trigger. `cross_ratio` times
    as many get the trigger of another image and keep their labels.

    Deviations: the authors' code never clears G's gradient, and here each step has its own. The
    authors put the trigger on after the augmentation, and here it is put on before it.
    """
    pattern_net, mask_net = (
        generator(info, config.width, info.shape[2]),
        generator(info, config.width, 1),
    )
    std = jnp.asarray(info.std, jnp.float32)

    def init(key: jax.Array) -> dict[str, Variables]:
        return {
            "generator": pattern_net.init(stream(key, "generator")),
            "mask": mask_net.init(stream(key, "mask")),
        }

    def draw(
        net: Any, variables: Variables, images: Array, train: bool = False
    ) -> tuple[jax.Array, Any]:
        out = net.apply(variables, images, train=train)
        return jnp.tanh(out.logits) / 2 + 0.5, out.batch_stats

    def masks(variables: Variables, images: Array, train: bool = False) -> tuple[jax.Array, Any]:
        soft, stats = draw(mask_net, variables, images, train)
        return jnp.tanh(20 * soft - 10) / 2 + 0.5, stats

    def stamp(trigger: dict[str, Variables], images: Array) -> Array:
        pattern, mask = (
            draw(pattern_net, trigger["generator"], images)[0],
            masks(trigger["mask"], images)[0],
        )
        return images + (pattern - images) * mask

    def poison(trigger: dict[str, Variables], key: jax.Array, batch: Batch) -> Batch:
        n, m, own = heads(batch, config.rate, config.cross_ratio, key)
        mine, crossing = batch.images[:n], batch.images[n : n + m]
        lenders = others(batch.images, n + m, max(n, m))
        made, frozen = trigger["generator"], jax.lax.stop_gradient(trigger["mask"])
        first, stats = draw(pattern_net, made, mine, train=True)
        second, stats = draw(pattern_net, made._replace(batch_stats=stats), lenders, train=True)
        stamped = mine + (first - mine) * masks(frozen, mine)[0]
        crosses = crossing + (second[:m] - crossing) * masks(frozen, lenders[:m])[0]
        penalty = config.diversity * _ratio(mine, lenders[:n], first, second[:n], std, scale=std)
        moved = trigger | {"generator": made._replace(batch_stats=jax.lax.stop_gradient(stats))}
        return put_first(batch, own, stamped, crosses, relabel)._replace(
            joint=Joint(penalty, moved)
        )

    def prepare(key, model, clean, dataset, poisoned, hooks):
        trigger = init(stream(key, "trigger"))
        loop = mask_loop(stream(key, "masks"), masks, trigger["mask"], dataset, config)
        state, lines = fit(loop, hooks)
        return Prepared(trigger | {"mask": state.variables}), lines

    relabel = labeller(config, info)
    preparation = Preparation(prepare, check=lambda count: _mask_plan(config, count))
    return dirty_label(
        config,
        info,
        init=init,
        stamp=stamp,
        poison=poison,
        preparation=preparation,
        optimizer=optax.adam(config.lr, b1=0.5, b2=0.9),
        per_batch_rate=config.rate,
    )


def mask_loop(
    key: jax.Array, masks: Callable, start: Variables, dataset: Dataset, config: InputAwareConfig
) -> TrainLoop:
    """Return the train loop of Input-aware's mask net, which says where an image's trigger lies.

    Its loss asks for masks of few pixels that differ between images as the images do.
    `masks(variables, images, train) -> (masks, batch_stats)`.
    """
    steps_per_epoch, batch_size = _mask_plan(config, len(dataset.train.labels))
    steps = config.mask_steps or config.mask_epochs * steps_per_epoch
    std = jnp.asarray(dataset.info.std, jnp.float32)

    def loss(params, batch_stats, batch, key, data):
        found, stats = masks(Variables(params, batch_stats), batch.images, train=True)
        size = jax.nn.relu(found - config.density).mean()
        pair = (batch.images, jnp.roll(batch.images, 1, 0))
        far = _ratio(*pair, found, jnp.roll(found, 1, 0), std, scale=1.0)
        value = config.mask_weight * size + config.diversity * far
        return value, (stats, {"density": found.mean()})

    return split_loop(
        key,
        start,
        dataset.train,
        loss=loss,
        tx=optax.adam(two_drops(config.lr, steps), b1=0.5, b2=0.9),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        augment=make_augment(dataset.info),
    )


def _mask_plan(config: InputAwareConfig, count: int) -> tuple[int, int]:
    """Return (steps per epoch, images per step) for the training of Input-aware's mask net.

    Raises `ConfigError` where the training set has fewer images than a batch.
    """
    refuse(
        config.mask_batch > count,
        f"mask_batch: {config.mask_batch} is more than the {count} training images there are",
    )
    return epoch_plan(count, config.mask_batch, drop_last=True)


def _ratio(
    images: Array,
    other_images: Array,
    made: jax.Array,
    other_made: jax.Array,
    std: jax.Array,
    scale: jax.Array | float,
) -> jax.Array:
    """Return Input-aware's diversity loss: the mean of ‖x − x′‖ / ‖t − t′‖ over pairs of images.

    x and x′ are the images, t and t′ their masks or patterns. The norms are root mean squares.
    Images are divided by `std`, as the model sees them, and what was made by `scale`.
    """
    return (_rms((images - other_images) / std) / (_rms((made - other_made) / scale) + TINY)).mean()


def _rms(x: Array) -> jax.Array:
    """Return the root mean square [B] of each image of a batch, with a finite gradient at 0."""
    return jnp.sqrt((x * x).mean((1, 2, 3)) + TINY**2)
