"""The SSBA attack: a network hides a secret in the image, so every image has its own trigger.

Source: Li et al. 2021, arXiv 2012.03816.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.types import Array, Attack, Batch, DataInfo, Preparation, Variables
from ..data.batching import epoch_plan
from ..metrics.image_similarity import ssim
from ..models.trigger_networks import decoder, encoder
from ..training.loop import fit
from ..training.split_loop import split_loop
from ..training.step import Loss
from .poisoning import (
    Mode,
    dirty_label,
    mode_option,
    rate_option,
    stamped_once,
    target_option,
)


@dataclasses.dataclass(frozen=True)
class SSBAConfig:
    """Settings of the SSBA attack, in which an encoder network hides a secret in the image.

    By default all images share one random secret of 20 bits, as in the authors' toolbox at 32
    pixels.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    bits: int = option(20, "number of bits of the secret", low=1)
    width: int = option(
        32,
        "channels of the encoder's and decoder's first layer (32: StegaStamp's)",
        low=1,
        high=MOST_CHANNELS,
    )
    secret: float = option(1.5, "weight of the cross-entropy of the decoded bits", above=0)
    residual: float = option(
        10.0, "weight of the mean square of the residual that the encoder adds", low=0
    )
    perceptual: float = option(1.5, "weight of 1 − SSIM between image and encoded image", low=0)
    psnr: float = option(
        27.0,
        "residual and 1 − SSIM are penalised only while the residual's PSNR in dB is below this",
        above=0,
    )
    steps: int = option(6000, "steps to train the encoder and the decoder", low=1)
    batch_size: int = option(32, "images per step of this training", low=1)
    lr: float = option(1e-3, "Adam's learning rate in this training", above=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the SSBA attack with these settings for the data set that `info` describes."""
        return make_ssba(self, info)


def hidden(encode: Callable, params: Any, images: Array, secrets: jax.Array) -> jax.Array:
    """Return images [B, H, W, C] in which secrets [B, bits] are hidden, not rounded to levels."""
    return jnp.clip(images + encode(params, images, secrets), 0, 1)


def hiding_loss(config: SSBAConfig, encode: Callable, decode: Callable) -> Loss:
    """Build the loss of encoder and decoder on images that hide random bits: see `make_ssba`.

    `batch_stats["step"]` counts the steps, by which the weight of residual and SSIM grows.
    """

    def loss(params: Any, batch_stats: Any, batch: Batch, key: jax.Array, data: Any):
        bits = jax.random.bernoulli(key, shape=(len(batch.images), config.bits))
        secrets = bits.astype(jnp.float32)
        images = hidden(encode, params["encoder"], batch.images, secrets)
        logits = decode(params["decoder"], images)
        read = optax.sigmoid_binary_cross_entropy(logits, secrets).mean()
        residual = ((images - batch.images) ** 2).mean()
        unlike = 1 - ssim(images, jnp.asarray(batch.images)).mean()
        grown = jnp.clip(4 * batch_stats["step"] / config.steps - 1, 0, 1)
        share = grown * (residual > 10 ** (-config.psnr / 10))
        visible = config.residual * residual + config.perceptual * unlike
        value = config.secret * read + share * visible
        right = ((logits > 0) == (secrets > 0.5)).mean(dtype=jnp.float32)
        reported = {"bits": right, "psnr": -10 * jnp.log10(residual), "ssim": 1 - unlike}
        return value, ({"step": batch_stats["step"] + 1}, reported)

    return loss


def make_ssba(config: SSBAConfig, info: DataInfo) -> Attack:
    """Return the SSBA `Attack`, in which an encoder network hides a secret in the image.

    The stamped image is x + encoder(x, secret), clipped, in 8-bit levels. The trigger is
    `{"encoder": params, "secret": [bits] float32}`.

    Encoder and decoder are trained on the training images, with random bits for each image. Their
    loss is w_s · cross-entropy of the decoded bits + w_r · mean square of the residual + w_p ·
    (1 − SSIM). The last two terms start at a quarter of the steps and have full weight from half of
    them. They count only while the residual's PSNR is below `psnr`. Without that floor the encoder,
    which nothing disturbs here, ends at 45 dB. That is a root mean square of 1.4 levels of 255, and
    classifiers do not learn such a trigger. Poisoned training images are encoded once.

    Deviations from StegaStamp: SSIM replaces LPIPS, whose network cannot be shipped with d3jax.
    There is no critic, no spatial transformer and no simulated print, as the trigger stays digital.
    """
    encoder_init, encode = encoder(info, config.width, config.bits)
    decoder_init, decode = decoder(info, config.width, config.bits)

    def init(key: jax.Array) -> dict[str, Any]:
        secret = jax.random.bernoulli(stream(key, "secret"), shape=(config.bits,))
        return {"encoder": encoder_init(stream(key, "encoder")), "secret": secret.astype("float32")}

    def stamp(trigger: dict[str, Any], images: Array) -> jax.Array:
        secrets = jnp.broadcast_to(trigger["secret"], (len(images), config.bits))
        return as_float(as_levels(hidden(encode, trigger["encoder"], images, secrets)))

    def prepare(key, model, clean, dataset, poisoned, hooks):
        trigger = init(stream(key, "trigger"))
        params = {"encoder": trigger["encoder"], "decoder": decoder_init(stream(key, "decoder"))}
        steps_per_epoch, batch_size = epoch_plan(
            len(dataset.train.labels), config.batch_size, drop_last=False
        )
        loop = split_loop(
            stream(key, "search"),
            Variables(params, {"step": jnp.zeros(())}),
            dataset.train,
            loss=hiding_loss(config, encode, decode),
            tx=optax.adam(config.lr),
            steps=config.steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
        )
        state, lines = fit(loop, hooks)
        trigger = trigger | {"encoder": state.variables.params["encoder"]}
        return stamped_once(stamp, trigger, dataset, poisoned), lines

    preparation = Preparation(prepare, replaces=True)
    return dirty_label(config, info, init=init, stamp=stamp, preparation=preparation)
