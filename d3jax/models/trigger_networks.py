"""Networks that make triggers: Input-aware's generator and mask net, SSBA's encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..core.errors import refuse
from ..core.types import DataInfo, Model
from .layers.conv import Conv
from .layers.linen import Linear, model_of, normalise
from .layers.norm import BatchNorm

HALVINGS = 4
"""Largest number of halvings in SSBA's encoder, as in StegaStamp."""


def generator(info: DataInfo, width: int, channels: int) -> Model:
    """Return Input-aware's generator or mask network, which maps images to pixel logits.

    The logits are [B, H, W, channels], before the squashing. The generator has as many `channels`
    as the image, the mask network has 1. The network is an autoencoder without skips. It halves the
    image three times, or twice where the sides are not multiples of 8. The paper's `width` is 32.
    It gives 32×32 images a network of 723,273 parameters at 3 channels and 722,691 at 1 channel.
    Raises `ConfigError` where the sides are not multiples of 4.
    """
    height, width_of_image = info.shape[:2]
    refuse(
        height % 4 or width_of_image % 4,
        "its networks halve an image twice: "
        f"{height}×{width_of_image} pixels are not multiples of 4",
    )
    halvings = 3 if all(side % 8 == 0 for side in info.shape[:2]) else 2
    return model_of(_Generator(info, width, channels, halvings), info)


class _Generator(nn.Module):
    info: DataInfo
    width: int
    channels: int
    halvings: int

    @nn.compact
    def __call__(self, images, train, active):
        def block(x, channels, activate=True):
            x = BatchNorm(train, momentum=0.95)(Conv(channels, bias=True)(x))
            return nn.relu(x) if activate else x

        widths = [self.width << i for i in range(self.halvings)]
        x = normalise(images, self.info)
        for channels in widths:
            x = nn.max_pool(block(block(x, channels), channels), (2, 2), (2, 2))
        x = block(x, widths[-1])
        for channels in widths[-2::-1]:
            x = block(block(_double(x), x.shape[3]), channels)
        return block(block(_double(x), x.shape[3]), self.channels, activate=False)


def encoder(info: DataInfo, width: int, bits: int) -> tuple[Callable, Callable]:
    """Return SSBA's encoder, which hides secret bits in images, as functions (init, apply).

    `init(key) -> params`, and `apply(params, images, secrets [B, bits]) -> residual [B, H, W, C]`.
    The network is StegaStamp's U-Net (Tancik et al. 2020, arXiv 1904.05343), where `width` is 32.
    It has up to four halvings, as many as the sides allow. Deviations: the secret enters at full
    size; kernels after a doubling are 3×3 (StegaStamp: 2×2).
    """
    halvings = next(
        n for n in range(HALVINGS, -1, -1) if all(side % (1 << n) == 0 for side in info.shape[:2])
    )
    net = _Encoder(width, halvings)
    init = jax.jit(
        lambda key: net.init(key, jnp.zeros((1, *info.shape)), jnp.zeros((1, bits)))["params"]
    )
    return init, lambda params, images, secrets: net.apply({"params": params}, images, secrets)


class _Encoder(nn.Module):
    width: int
    halvings: int

    @nn.compact
    def __call__(self, images, secrets):
        spread = nn.relu(Linear(images[0].size, name="secret")(secrets - 0.5)).reshape(images.shape)
        both = jnp.concatenate([images - 0.5, spread], -1)
        x, skips = nn.relu(Conv(self.width, bias=True, name="in")(both)), []
        for i in range(self.halvings):
            skips.append(x)
            x = nn.relu(Conv(self.width << i, stride=2, bias=True, name=f"down{i}")(x))
        for i in reversed(range(self.halvings)):
            channels, doubled = skips[i].shape[3], jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = nn.relu(Conv(channels, bias=True, name=f"up{i}")(doubled))
            x = jnp.concatenate([x, skips[i], *([] if i else [both])], -1)
            x = nn.relu(Conv(channels, bias=True, name=f"join{i}")(x))
        return Conv(images.shape[3], 1, bias=True, name="out")(x)


def decoder(info: DataInfo, width: int, bits: int) -> tuple[Callable, Callable]:
    """Return SSBA's decoder, which reads the hidden bits from images, as functions (init, apply).

    `init(key) -> params`, and `apply(params, images) -> logits [B, bits]`.
    """
    net = _Decoder(width, bits)
    init = jax.jit(lambda key: net.init(key, jnp.zeros((1, *info.shape)))["params"])
    return init, lambda params, images: net.apply({"params": params}, images)


class _Decoder(nn.Module):
    width: int
    bits: int

    @nn.compact
    def __call__(self, images):
        x = images - 0.5
        for i, (multiple, stride) in enumerate(
            ((1, 2), (1, 1), (2, 2), (2, 1), (2, 2), (4, 2), (4, 2))
        ):
            x = nn.relu(Conv(multiple * self.width, stride=stride, bias=True, name=f"conv{i}")(x))
        x = nn.relu(Linear(16 * self.width, name="hidden")(x.reshape(len(x), -1)))
        return Linear(self.bits, name="out")(x)


def _double(x: jax.Array) -> jax.Array:
    """Enlarge feature maps [B, h, w, C] to [B, 2h, 2w, C] by bilinear interpolation."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")
