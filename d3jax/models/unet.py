"""A U-Net that maps images to images (Ronneberger et al. 2015, arXiv 1505.04597)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..core.types import DataInfo
from .layers.conv import Conv

HALVINGS = 4
"""Largest number of halvings of the image."""
SLOPE = 0.01
"""Slope of the leaky ReLU for negative inputs."""


def unet(info: DataInfo, width: int) -> tuple[Callable, Callable]:
    """Return a U-Net for images of a data set, as functions (init, apply).

    `init(key) -> params`, and `apply(params, images) -> images`, both [B, H, W, C] float32 without
    bounds. The first level has `width` channels, and every halving doubles them. The image is
    halved up to four times, as often as its sides allow with two pixels left.
    """
    halvings = next(
        n
        for n in range(HALVINGS, -1, -1)
        if all(side % (1 << n) == 0 and side >> n > 1 for side in info.shape[:2])
    )
    net = _UNet(width, halvings)
    init = jax.jit(lambda key: net.init(key, jnp.zeros((1, *info.shape)))["params"])
    return init, lambda params, images: net.apply({"params": params}, images)


class _UNet(nn.Module):
    width: int
    halvings: int

    @nn.compact
    def __call__(self, images):
        def block(x, channels, name):
            for i in range(2):
                x = Conv(channels, bias=True, name=f"{name}_{i + 1}")(x)
                x = nn.leaky_relu(_normalised(x), SLOPE)
            return x

        x, skips = images, []
        for i in range(self.halvings):
            x = block(x, self.width << i, f"down{i + 1}")
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = block(x, self.width << self.halvings, "middle")
        for i in reversed(range(self.halvings)):
            x = nn.ConvTranspose(self.width << i, (2, 2), (2, 2), name=f"enlarge{i + 1}")(x)
            x = block(jnp.concatenate([x, skips[i]], -1), self.width << i, f"up{i + 1}")
        return Conv(images.shape[-1], 1, bias=True, name="out")(x)


def _normalised(x: jax.Array) -> jax.Array:
    """Return each channel of each image with mean 0 and variance 1 (instance normalisation)."""
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)
