"""Conversion of images between 8-bit levels, 0 to 255, and floats in [0, 1], and their hashes."""

from __future__ import annotations

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32, Integer, UInt32

from .errors import DataError
from .types import Array


@overload
def as_float(levels: Integer[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]: ...
@overload
def as_float(levels: Integer[jax.Array, "*shape"]) -> Float32[jax.Array, "*shape"]: ...
def as_float(levels: Integer[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Convert images of 8-bit levels (integers from 0 to 255) to float32 in [0, 1].

    The levels are multiplied by 1/255, not divided by 255. Some compilers turn the division into
    this product, and the results would differ by one ulp. Raises `DataError` for floats, which are
    no levels.
    """
    if jnp.issubdtype(levels.dtype, jnp.floating):
        raise DataError(
            f"images: want 8-bit levels from 0 to 255 as integers, got {levels.dtype}; "
            "d3jax.as_levels(images).astype('uint8') makes them of images in [0, 1]"
        )
    return levels.astype(jnp.float32) * np.float32(1 / 255)


def as_levels(images: Float[Array, "*shape"]) -> Int32[jax.Array, "*shape"]:
    """Convert float images in [0, 1] to the nearest 8-bit levels (0 to 255), as int32.

    Triggers that published code computes on 8-bit values stay exact this way.
    """
    return jnp.round(images * 255).astype(jnp.int32)


def hashes_of(levels: Integer[Array, "B H W C"]) -> UInt32[jax.Array, " B"]:
    """Return a hash [B] for each of the images [B, H, W, C] of 8-bit levels.

    It is a polynomial of the levels modulo 2³² with an odd base.
    """
    flat = jnp.reshape(levels, (len(levels), -1)).astype(jnp.uint32)
    powers = np.cumprod(np.full(flat.shape[1], 0x9E3779B1, np.uint32), dtype=np.uint32)
    return (flat * powers).sum(1, dtype=jnp.uint32)
