"""Resampling with the conventions that the field's recipes were written in: PyTorch's bicubic enlargement and grid sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Array

SHARPNESS = -0.75
"""The parameter of the cubic kernel (Keys 1981), as PyTorch has it; Keys's own choice is −0.5."""


def enlarge(field: jax.Array, height: int, width: int) -> jax.Array:
    """field [h, w, C] → [height, width, C]: bicubic, corners kept (`align_corners=True`), the border repeated outside."""
    rows, columns = (
        _cubic_weights(before, after)
        for before, after in zip(field.shape, (height, width), strict=False)
    )
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, field, precision="highest")


def _cubic_weights(before: int, after: int) -> np.ndarray:
    """The matrix [after, before] that enlarges a line, float32."""
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
    near = (SHARPNESS + 2) * distance**3 - (SHARPNESS + 3) * distance**2 + 1
    far = SHARPNESS * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def identity_grid(height: int, width: int) -> jax.Array:
    """The grid [height, width, 2] of (x, y) in [−1, 1] that samples every pixel where it is, corners at ±1."""
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    return jnp.stack([x, y], -1)


def sample(images: Array, grid: jax.Array) -> Array:
    """images [B, H, W, C] at the places (x, y) of grid [h, w, 2] or [B, h, w, 2] → [B, h, w, C].

    Bilinear, ±1 the centres of the corner pixels (`align_corners=True`), zero outside (`padding_mode="zeros"`).
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
    if rows.ndim == 2:
        return images[:, rows, columns]
    return jax.vmap(lambda image, row, column: image[row, column])(images, rows, columns)
