"""Reflections in a pane of glass between the camera and the scene, for the Refool attack.

Source: Liu et al. 2020, arXiv 2007.02343. A reflection is a ghost, doubled by both faces of
the pane, or it is out of focus.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32

from ..core.random import stream
from ..core.types import Array

GAMMA = 2.2
"""The exponent that turns pixels in [0, 1] into linear light."""
OFFSETS = (3, 8)
"""The smallest and the largest offset of a ghost in pixels, at a side of `resolution`."""
SIGMAS = (1.0, 5.0)
"""The range of the blur's standard deviation in pixels, at a side of `resolution`."""


class Optics(NamedTuple):
    """The random choices for the reflections in B images.

    A reflection is a ghost where `ghost` is true, and otherwise out of focus. `picture` are rows of
    the pool of pictures. A ghost has `offset` [B, 2] (rows, columns) in pixels and
    `share`, the weight α of its first copy. An out-of-focus reflection has `sigma` in pixels and
    `attenuation`.
    """

    picture: Int32[Array, " B"]
    ghost: Bool[Array, " B"]
    offset: Int32[Array, "B 2"]
    share: Float32[Array, " B"]
    sigma: Float32[Array, " B"]
    attenuation: Float32[Array, " B"]


def choose(key: jax.Array, pool: int, ghost_rate: float, scale: float) -> Optics:
    """Draw the `Optics` of one image, without the axis B, for a pool of `pool` pictures.

    `scale` is the image's longer side, divided by that for which offsets and blurs are published.
    """

    def uniform(name: str, low: float, high: float) -> jax.Array:
        return jax.random.uniform(stream(key, name), minval=low, maxval=high)

    offset = jax.random.randint(stream(key, "offset"), (2,), OFFSETS[0], OFFSETS[1] + 1)
    return Optics(
        picture=jax.random.randint(stream(key, "picture"), (), 0, pool),
        ghost=jax.random.bernoulli(stream(key, "ghost"), ghost_rate),
        offset=jnp.maximum(jnp.round(scale * offset).astype(jnp.int32), 1),
        share=jnp.abs(jax.random.bernoulli(stream(key, "side")) - uniform("share", 0.15, 0.5)),
        sigma=jnp.maximum(scale * uniform("sigma", *SIGMAS), 1.0),
        attenuation=uniform("attenuation", 1.08, 1.18),
    )


def mix(images: Array, pictures: Array, optics: Optics, transmission: float) -> jax.Array:
    """Mix the reflections of `pictures` into `images`, both [B, H, W, C] float32 in [0, 1]."""
    t, r = images**GAMMA, pictures**GAMMA
    doubled = (1 - transmission) * ghosts(r, optics.offset, optics.share)
    soft = subdued(blurred(r, optics.sigma), t, optics.attenuation)
    soft = (1 - transmission / 2) * window(*images.shape[1:3]) * soft
    added = jnp.where(optics.ghost[:, None, None, None], doubled, soft)
    return jnp.power(jnp.clip(transmission * t + added, 0, 1), 1 / GAMMA)


def ghosts(r: Array, offset: Array, share: Array) -> jax.Array:
    """Return pictures [B, H, W, C] as reflected by both faces of a thick pane of glass.

    It is α·r + (1 − α)·r shifted by the offset, where the two overlap, enlarged to [H, W].
    """
    rows, columns = (_overlap(side, offset[:, i]) for i, side in enumerate(r.shape[1:3]))
    first, second = (_along(r, *lines) for lines in zip(rows, columns, strict=True))
    weight = jnp.asarray(share)[:, None, None, None]
    return weight * first + (1 - weight) * second


def blurred(r: Array, sigma: Array) -> jax.Array:
    """Return pictures [B, H, W, C] blurred by a Gaussian that ends at ⌈2σ⌉ pixels."""

    def weights(side: int) -> jax.Array:
        apart = np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
        wide = sigma[:, None, None]
        line = jnp.exp(-(apart**2) / (2 * wide**2)) * (apart <= jnp.ceil(2 * wide))
        return line / line.sum(2, keepdims=True)

    return _along(r, weights(r.shape[1]), weights(r.shape[2]))


def subdued(r: Array, t: Array, attenuation: Array) -> jax.Array:
    """Darken reflections r [B, H, W, C] where r + t is too bright, for each channel on its own.

    The mean excess over 1 of the pixels with r + t > 1, times the attenuation, is subtracted.
    """
    total = r + t
    bright = total > 1
    mean = (total * bright).sum((1, 2), keepdims=True) / (bright.sum((1, 2), keepdims=True) + 1e-6)
    excess = jnp.maximum(mean, 1) - 1
    return jnp.clip(r - attenuation[:, None, None, None] * excess, 0, 1)


def window(height: int, width: int) -> np.ndarray:
    """Return the weights [H, W, 1] of out-of-focus reflections, exp(−(u² + v²)/4).

    u and v are 0 in the middle of the image, and ±3 at the ends of its longer side.
    """
    longest = max(height, width)
    u, v = (6 * (np.arange(side) - (side - 1) / 2) / (longest - 1) for side in (height, width))
    return np.exp(-np.add.outer(u**2, v**2) / 4).astype(np.float32)[:, :, None]


def _overlap(side: int, offset: Array) -> tuple[jax.Array, jax.Array]:
    """Return the matrices [B, side, side] that enlarge two copies' overlap along one axis.

    The first samples the unshifted copy, the second the shifted one, both bilinearly.
    """
    offset, pixels = offset[:, None], np.arange(side)
    inside = jnp.clip((pixels + 0.5) * (side - offset) / side - 0.5, 0, side - offset - 1)

    def sampling(at: jax.Array) -> jax.Array:
        return jnp.maximum(1 - jnp.abs(at[:, :, None] - pixels), 0)

    return sampling(inside + offset), sampling(inside)


def _along(r: Array, rows: Array, columns: Array) -> jax.Array:
    """Multiply the rows and columns of images [B, H, W, C] by one pair of matrices per image."""
    return jnp.einsum("bih,bjw,bhwc->bijc", rows, columns, r, precision="highest")
