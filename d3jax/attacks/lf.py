"""The LF attack: a smooth pattern added to the image (Zeng et al. 2021, arXiv 2104.03413)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.fields import check_fields, option
from ..core.images import as_float, as_levels
from ..core.losses import cross_entropy
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo, Preparation, Prepared, Variables
from ..data.batching import epoch_plan
from ..training.loop import fit
from ..training.split_loop import split_loop
from .poisoning import Mode, dirty_label, labeller, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class LFConfig:
    """Settings of the LF attack, which adds a smooth (low-frequency) pattern to the image.

    By default the pattern has up to 51 of 255 levels. Its low-pass has a standard deviation of six
    pixels in 32. The search has 500 steps.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    amplitude: int = option(
        51, "highest value of the pattern in 8-bit levels; its lowest is 0", low=1, high=255
    )
    sigma: float = option(
        6.0, "standard deviation of the Gaussian low-pass in pixels of an image 32 wide", above=0
    )
    steps: int = option(500, "number of steps of the search for the pattern", low=1)
    batch_size: int = option(128, "images per step of the search", low=1)
    lr: float = option(0.1, "Adam's learning rate in the search", above=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the LF attack with these settings for the data set that `info` describes."""
        return make_lf(self, info)


def make_lf(config: LFConfig, info: DataInfo) -> Attack:
    """Return the LF `Attack`, which adds a smooth (low-frequency) pattern to the image.

    The stamped image is x + pattern, clipped, in 8-bit levels. The trigger is
    `{"pattern": [H, W, C] uint8}`.

    The pattern is a universal perturbation of a clean model of the same architecture. It starts as
    Gaussian noise, low-passed and stretched to 0…amplitude. Gradient descent then lowers the
    cross-entropy of triggered training images with the target. For all_to_all, ascent raises the
    cross-entropy with their own labels. Deviation: Zeng, Park, Mao and Jia search by DeepFool on
    100 images and filter what it adds.
    """
    low_pass = [jnp.asarray(_gaussian(side, config.sigma * side / 32)) for side in info.shape[:2]]

    def smooth(raw: jax.Array) -> jax.Array:
        """Low-pass an array [H, W, C] and stretch it to a pattern in [0, amplitude / 255]."""
        soft = jnp.einsum("ih,jw,hwc->ijc", *low_pass, raw, precision="highest")
        spread = soft.max() - soft.min()
        return config.amplitude / 255 * (soft - soft.min()) / jnp.where(spread > 0, spread, 1.0)

    def start(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, info.shape)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"pattern": as_levels(smooth(start(key))).astype(jnp.uint8)}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return as_float(jnp.minimum(as_levels(images) + trigger["pattern"].astype(jnp.int32), 255))

    def prepare(key, model, clean, dataset, poisoned, hooks):
        def loss(params, batch_stats, batch, key, data):
            images = jnp.clip(batch.images + smooth(params["raw"]), 0, 1)
            logits = model.apply(data.reference_params, images, train=False).logits
            if config.mode == "all_to_all":
                value = -cross_entropy(logits, batch.labels).mean()
                return value, (
                    {},
                    {"fooled": (logits.argmax(-1) != batch.labels).mean(dtype=jnp.float32)},
                )
            wanted = labeller(config, info)(batch.labels)
            return cross_entropy(logits, wanted).mean(), (
                {},
                {"fooled": (logits.argmax(-1) == wanted).mean(dtype=jnp.float32)},
            )

        steps_per_epoch, batch_size = epoch_plan(
            len(dataset.train.labels), config.batch_size, drop_last=False
        )
        loop = split_loop(
            stream(key, "search"),
            Variables({"raw": start(stream(key, "trigger"))}, {}),
            dataset.train,
            loss=loss,
            tx=optax.adam(config.lr),
            steps=config.steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            reference_params=clean,
        )
        state, lines = fit(loop, hooks)
        return Prepared(
            {"pattern": as_levels(smooth(state.variables.params["raw"])).astype(jnp.uint8)}
        ), lines

    return dirty_label(
        config, info, init=init, stamp=stamp, preparation=Preparation(prepare, surrogate=True)
    )


def _gaussian(side: int, sigma: float) -> np.ndarray:
    """Return the matrix [side, side] that low-passes a line of pixels; each row sums to 1."""
    apart = np.subtract.outer(np.arange(side), np.arange(side)) / sigma
    weights = np.exp(-apart * apart / 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
