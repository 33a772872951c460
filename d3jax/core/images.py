"""Conversion between 8-bit levels and floats in [0, 1]."""

from __future__ import annotations

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32, Integer

from .types import Array


@overload
def as_float(levels: Integer[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]: ...
@overload
def as_float(levels: Integer[jax.Array, "*shape"]) -> Float32[jax.Array, "*shape"]: ...
def as_float(levels: Integer[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """8-bit levels as float32 in [0, 1]. A product, not a quotient: some compilers turn x / 255 into one, one ulp off."""
    return levels.astype(jnp.float32) * np.float32(1 / 255)


def as_levels(images: Float[Array, "*shape"]) -> Int32[jax.Array, "*shape"]:
    """Images in [0, 1] as the nearest 8-bit levels, int32. Triggers that the field computes on 8-bit values stay exact so."""
    return jnp.round(images * 255).astype(jnp.int32)
