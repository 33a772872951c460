"""The Poison Ink attack: a network hides coloured edges in the image.

Source: Zhang et al., "Poison Ink: Robust and Invisible Backdoor Attack", IEEE Transactions on Image
Processing 31, 2022, arXiv 2108.02488.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.errors import names, refuse
from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo, Dataset, Preparation, Variables
from ..data.batching import epoch_plan
from ..data.grid_sample import random_grid, sample
from ..models.unet import unet
from ..training.loop import TrainLoop, fit
from ..training.optim import two_drops
from ..training.split_loop import split_loop
from .ink import ink, ink_colour
from .poisoning import (
    Mode,
    dirty_label,
    mode_option,
    rate_option,
    stamped_once,
    target_option,
)

Stage = Literal["rotation", "crop", "flip"]
"""A stage of the networks' training, by the transformation that it adds."""


@dataclasses.dataclass(frozen=True)
class PoisonInkConfig:
    """Settings of the Poison Ink attack, in which a network hides coloured edges in the image.

    The defaults are those of BackdoorBench. The three stages of 200 epochs have 938,000 steps on
    50,000 images. `steps` makes them shorter.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    colour: tuple[int, ...] = option(
        (80, 160, 80), "8-bit colour of the ink: red, green and blue", low=0, high=255
    )
    threshold: float = option(
        28.0, "Sobel magnitude of the grey image, in 8-bit levels, above which a pixel is an edge",
        above=0,
    )  # fmt: skip
    width: int = option(
        64, "channels of the first level of both networks", low=1, high=MOST_CHANNELS
    )
    stages: tuple[Stage, ...] = option(
        get_args(Stage),
        "stages of the networks' training; each adds its transformation to those of the stages "
        "before it",
    )
    epochs: int = option(200, "passes over the training set in each stage", low=1)
    steps: int = option(0, "steps of each stage (0: as many as `epochs` passes have)", low=0)
    batch_size: int = option(32, "images per step of the networks' training", low=1)
    lr: float = option(
        2e-4,
        "Adam's learning rate for both networks; divided by ten at 0.4 and 0.8 of each stage",
        above=0,
    )
    ink: float = option(13.0, "weight of the ink's error on the edges", low=0)
    clean: float = option(100.0, "weight of the error on clean images, which have no ink", low=0)
    degrees: float = option(15.0, "largest angle of the random rotation", low=0, high=180)
    crop: float = option(0.875, "side of the random crop as a share of the image", above=0, high=1)

    def __post_init__(self) -> None:
        check_fields(self)
        refuse(not self.stages, f"stages: want at least one of {names(get_args(Stage))}, got none")
        twice = len(set(self.stages)) < len(self.stages)
        refuse(twice, f"stages: want each stage once, got {names(self.stages)}")
        refuse(len(self.colour) != 3, f"colour: want 3 values, got {len(self.colour)}")

    def build(self, info: DataInfo) -> Attack:
        """Build the Poison Ink attack with these settings for the data set of `info`."""
        return make_poison_ink(self, info)


def make_poison_ink(config: PoisonInkConfig, info: DataInfo) -> Attack:
    """Return the Poison Ink `Attack`, in which a network hides coloured edges in the image.

    The edges are the pixels where the Sobel magnitude of the grey image is above the threshold. The
    ink w has the colour on the edges, and is white elsewhere. The stamped image is clip(H([x; w])),
    in 8-bit levels, with the hiding network H. The trigger is `{"hider": params}`. Images with one
    channel get ink of the colour's grey value.

    H and a recovery network R are trained first, on the training images (`ink_loop`). Then R is
    discarded and H is frozen. Poisoned training images are replaced once and relabelled. They are
    augmented like the other images.

    Deviations:

    - BackdoorBench joins each clean batch with a batch of the whole poisoned training set, which is
      not augmented. So 5 % of the images are poisoned, and every poisoned image also occurs clean,
      with its true label.
    - The paper has a fourth stage with a discriminator. BackdoorBench leaves it out, because with
      it the ASR was about 50 %.
    - H is `models.unet.unet`, which normalises each image by itself. The authors' U-Net has
      BatchNorm, bilinear doublings, and as many channels in the last level as in the one before.
    - R is the same network with one image as input. The authors' R has seven residual blocks of 128
      channels at half the size, and a ReLU at its end.
    - The authors' loader sets the angle of the rotation to 0. Lines that are commented out draw it
      within ±15 or ±30 degrees, for half of the images. Here each batch has one angle within ±15
      degrees.
    - The authors rotate, then crop. Here one bilinear sampling does both.

    On images with much noise or with few training steps the residual stays visible. The ink's error
    has 13 times the weight of the residual's.

    Raises `AttackError` for images that have neither 1 nor 3 channels.
    """
    init_hider, hide = hiding_net(info, config.width)
    colour = ink_colour(config.colour, info)

    def init(key: jax.Array) -> dict[str, Any]:
        return {"hider": init_hider(key)}

    def stamp(trigger: dict[str, Any], images: Array) -> jax.Array:
        _, drawn = ink(as_levels(images), config.threshold, colour)
        return as_float(as_levels(jnp.clip(hide(trigger["hider"], images, drawn), 0, 1)))

    def prepare(key, model, clean, dataset, poisoned, hooks):
        start = init(stream(key, "trigger"))["hider"]
        state, lines = fit(ink_loop(key, start, hide, dataset, config), hooks)
        trigger = {"hider": state.variables.params["hider"]}
        return stamped_once(stamp, trigger, dataset, poisoned), lines

    return dirty_label(
        config,
        info,
        init=init,
        stamp=stamp,
        preparation=Preparation(prepare, replaces=True),
    )


def ink_loop(
    key: jax.Array, start: Any, hide: Callable, dataset: Dataset, config: PoisonInkConfig
) -> TrainLoop:
    """Return Poison Ink's train loop, which trains the hiding and the recovery network.

    The loss of a batch is `ink_loss`. `start` are the initial parameters of the hiding network.
    Each image gets ink of a random colour, as in the authors' loader. Every channel of it is one of
    40, 80, 120, 160 and 200 levels. All images of a batch get one random transformation
    (`random_grid`), with and without ink. The edges and the ink to recover are those of the
    transformed images. Every stage starts with a new state of the optimiser.
    """
    info, count = dataset.info, len(dataset.train.labels)
    init_recovery, recover = unet(info, config.width)
    steps_per_epoch, batch_size = epoch_plan(count, config.batch_size, drop_last=False)
    steps = config.steps or config.epochs * steps_per_epoch
    tx = optax.adam(two_drops(config.lr, steps), b1=0.5)

    def loss(params, batch_stats, batch, key, data):
        images, step = batch.images, batch_stats["step"]
        key_colour, key_grid = jax.random.split(key)
        several = (len(images), 1, 1, info.shape[2])
        colour = as_float(40 * jax.random.randint(key_colour, several, 1, 6))
        _, drawn = ink(as_levels(images), config.threshold, colour)
        hidden = hide(params["hider"], images, drawn)
        begin = {name: steps * i for i, name in enumerate(config.stages)}
        allowed = {name: name in begin and step >= begin[name] for name in get_args(Stage)}
        grid = random_grid(key_grid, info.shape, allowed, config.degrees, config.crop)
        plain = sample(images, grid)
        edges, wanted = ink(255 * plain, config.threshold, colour)
        found = recover(params["recovery"], sample(hidden, grid))
        blank = recover(params["recovery"], plain)
        value, reported = ink_loss(config, images, hidden, edges, wanted, found, blank)
        return value, ({"step": step + 1}, reported)

    def advance(before, after, reported, data):
        ended, fresh = after.step % steps == 0, tx.init(after.variables.params)
        opt_state = jax.tree.map(partial(jnp.where, ended), fresh, after.opt_state)
        return dataclasses.replace(after, opt_state=opt_state), reported

    params = {"hider": start, "recovery": init_recovery(stream(key, "recovery"))}
    return split_loop(
        stream(key, "search"),
        Variables(params, {"step": jnp.zeros((), jnp.int32)}),
        dataset.train,
        loss=loss,
        tx=tx,
        steps=len(config.stages) * steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        advance=advance,
    )


def ink_loss(
    config: PoisonInkConfig,
    images: jax.Array,
    hidden: jax.Array,
    edges: jax.Array,
    wanted: jax.Array,
    found: jax.Array,
    blank: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return Poison Ink's loss of a batch, and the values to log.

    It is 10⁴ · {MSE(x̃, x) + 13 · MSE(M R(T x̃), M w) + MSE((1 − M) R(T x̃), 1 − M) +
    100 · MSE(R(T x), 1)}. x are the `images`, x̃ the `hidden` ones before clipping and rounding, and
    T is the transformation. M are the `edges` of T x, [B, H, W, 1] bool, and w is the `wanted` ink.
    `found` is R(T x̃), and `blank` is R(T x). The means are over all pixels.
    """
    residual = jnp.square(hidden - images).mean()
    missed = jnp.square(edges * (found - wanted)).mean()
    spilled = jnp.square(~edges * (found - 1)).mean()
    invented = jnp.square(blank - 1).mean()
    value = residual + config.ink * missed + spilled + config.clean * invented
    psnr = -10 * jnp.log10(residual)
    reported = {"psnr": psnr, "ink": missed, "spilled": spilled, "invented": invented}
    return 1e4 * value, reported


def hiding_net(info: DataInfo, width: int) -> tuple[Callable, Callable]:
    """Return the hiding network, a U-Net that maps an image and its ink to an image.

    It is (init, apply): `init(key) -> params`, and `apply(params, images, ink) -> images`, without
    bounds. The network is `models.unet.unet` with twice the channels, of which it returns the first
    half.
    """
    height, breadth, channels = info.shape
    init, mapped = unet(dataclasses.replace(info, shape=(height, breadth, 2 * channels)), width)

    def apply(params: Any, images: Array, drawn: jax.Array) -> jax.Array:
        return mapped(params, jnp.concatenate([images, drawn], -1))[..., :channels]

    return init, apply
