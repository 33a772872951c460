"""Bicubic enlargement and grid sampling of images, with PyTorch's conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Array

SHARPNESS = -0.75
"""Parameter of the cubic kernel (Keys 1981), with PyTorch's value; Keys chose −0.5."""


def enlarge(field: jax.Array, height: int, width: int) -> jax.Array:
    """Enlarge an image or a field [h, w, C] to [height, width, C] by bicubic interpolation.

    Corners stay corners (`align_corners=True`), and the border repeats outside.
    """
    rows, columns = (
        _cubic_weights(before, after)
        for before, after in zip(field.shape, (height, width), strict=False)
    )
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, field, precision="highest")


def _cubic_weights(before: int, after: int) -> np.ndarray:
    """Return the matrix [after, before] that enlarges a line of pixels by cubic interpolation."""
    places = np.arange(after) * ((before - 1) / max(after - 1, 1))
    first, weights = np.floor(places).astype(int), np.zeros((after, before))
    for offset in range(-1, 3):
        np.add.at(
            weights,
            (np.arange(after), np.clip(first + offset, 0, before - 1)),
            _kernel(np.abs(places - first - offset)),
        )
    return weights.astype(np.float32)


def _kernel(distance: np.ndarray) -> np.ndarray:
    """Return the values of Keys' cubic interpolation kernel at non-negative distances."""
    near = (SHARPNESS + 2) * distance**3 - (SHARPNESS + 3) * distance**2 + 1
    far = SHARPNESS * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def identity_grid(height: int, width: int) -> jax.Array:
    """Return the sampling grid [height, width, 2] that leaves an image as it is.

    It holds (x, y) in [−1, 1], with the centres of the corner pixels at ±1.
    """
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    return jnp.stack([x, y], -1)


def sample(images: Array, grid: jax.Array) -> Array:
    """Sample images [B, H, W, C] bilinearly at the points of a grid, giving [B, h, w, C].

    `grid` holds (x, y) and is [h, w, 2], shared by all images, or [B, h, w, 2]. The centres of the
    corner pixels are at ±1 (`align_corners=True`). Values outside the image are zero
    (`padding_mode="zeros"`).
    """
    height, width = images.shape[1:3]
    x, y = ((grid[..., i] + 1) / 2 * (size - 1) for i, size in enumerate((width, height)))
    left, top = jnp.floor(x), jnp.floor(y)
    total = 0.0
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        weight = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row))
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        rows, columns = (
            jnp.clip(place, 0, size - 1).astype(jnp.int32)
            for place, size in ((row, height), (column, width))
        )
        total += _pixels(images, rows, columns) * jnp.where(inside, weight, 0.0)[..., None]
    return total


def _pixels(images: Array, rows: jax.Array, columns: jax.Array) -> Array:
    """Return the pixels [B, h, w, C] of images at indices [h, w], or [B, h, w] for each image."""
    if rows.ndim == 2:
        return images[:, rows, columns]
    return jax.vmap(lambda image, row, column: image[row, column])(images, rows, columns)


def random_grid(
    key: jax.Array,
    shape: tuple[int, ...],
    allowed: Mapping[str, bool | jax.Array],
    degrees: float,
    crop: float,
) -> jax.Array:
    """Return the grid [H, W, 2] at which images are sampled (`sample`) to transform them randomly.

    `allowed` says of "rotation", "crop" and "flip" whether it may occur. The rotation is about the
    centre, by an angle within ±`degrees`. With probability one half a random window, whose sides
    are `crop` times those of the image, is enlarged. With the same probability the image is
    mirrored left to right.
    """
    turn, cut, place, mirror = jax.random.split(key, 4)
    height, width = shape[:2]
    sides = jnp.array([width, height], jnp.float32)
    cropped = allowed["crop"] & jax.random.bernoulli(cut)
    kept = jnp.where(cropped, jnp.maximum(jnp.round(crop * sides), 1), sides)
    first = jnp.floor(jax.random.uniform(place, (2,)) * (sides - kept + 1))
    at = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1)
    at = jnp.clip((at + 0.5) * kept / sides - 0.5, 0, kept - 1) + first
    at = jnp.where(allowed["flip"] & jax.random.bernoulli(mirror), at[:, ::-1], at)
    angle = allowed["rotation"] * degrees * jax.random.uniform(turn, minval=-1)
    sine, cosine = jnp.sin(math.pi / 180 * angle), jnp.cos(math.pi / 180 * angle)
    x, y = jnp.moveaxis(at - (sides - 1) / 2, -1, 0)
    turned = jnp.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
    return 2 * turned / (sides - 1)
