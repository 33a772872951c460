"""The ink of Poison Ink: the edges of an image in one colour."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.errors import AttackError
from ..core.images import as_float
from ..core.types import Array, DataInfo

GREY = (299, 587, 114)
"""Weights of red, green and blue in the grey value, in thousandths."""


def ink_colour(colour: tuple[int, ...], info: DataInfo) -> jax.Array:
    """Return the colour of the ink [C] in [0, 1]; its grey value for images with one channel.

    Raises `AttackError` for images that have neither 1 nor 3 channels.
    """
    channels = info.shape[2]
    if channels not in (1, 3):
        raise AttackError(f"poison_ink: {info.name} has {channels} channels, want 1 or 3")
    if channels == 1:
        colour = (round(sum(a * b for a, b in zip(colour, GREY, strict=True)) / 1000),)
    return as_float(jnp.asarray(colour))


def sobel(grey: jax.Array) -> jax.Array:
    """Return the Sobel magnitude √((h² + v²) / 2) of grey images [B, H, W].

    h and v are the differences across rows and columns, by kernels of skimage's scale: 1, 2, 1 over
    4. The border is repeated outside the image, which is skimage's mode "reflect" at this size.
    """
    wide = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), "edge")
    over_rows = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    over_columns = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
    v = over_rows[:, :, 2:] - over_rows[:, :, :-2]
    h = over_columns[:, 2:] - over_columns[:, :-2]
    return jnp.sqrt((h * h + v * v) / 2) / 4


def ink(levels: Array, threshold: float, colour: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the edges [B, H, W, 1] bool of images in 8-bit levels, and their ink [B, H, W, C].

    The ink has the `colour` ([C], or [B, 1, 1, C]) on the edges, and is white elsewhere.
    """
    # In thousandths of a level all terms are whole numbers, so that float32 sums are exact.
    weights = jnp.asarray(GREY if levels.shape[3] == 3 else (1000,), jnp.float32)
    grey = jnp.asarray(levels, jnp.float32) * weights
    edges = (sobel(grey.sum(-1)) > 1000 * threshold)[..., None]
    return edges, jnp.where(edges, colour, 1.0)
