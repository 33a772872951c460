"""FixMatch's strong augmentation on the device: RandAugment, then Cutout.

RandAugment (Cubuk et al. 2020) applies two random operations to each image. Cutout (DeVries and
Taylor 2017) greys out a square. The operations are the identity, three of `drift`'s and four more,
with strengths drawn evenly from a range. The field's list is longer: it also has sharpness,
equalise and colour balance.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.types import Array
from .drift import DRIFTS


def _posterise(keys: jax.Array, images: jax.Array, strength: jax.Array) -> jax.Array:
    """Keep only the highest 4 to 8 bits of every pixel value: fewer at a larger strength."""
    levels = 2.0 ** jnp.round(8 - 4 * jnp.abs(strength))
    return jnp.floor(images * 255 / 256 * levels) / levels * 256 / 255


def _solarise(keys: jax.Array, images: jax.Array, strength: jax.Array) -> jax.Array:
    """Invert the pixel values of images above the threshold 1 − |strength|."""
    return jnp.where(images > 1 - jnp.abs(strength), 1 - images, images)


def _shift(keys: jax.Array, images: jax.Array, strength: jax.Array) -> jax.Array:
    """Shift images sideways by up to 30 % of their width, filling with black."""
    width = images.shape[2]
    by = jnp.round(0.3 * strength * width).astype(jnp.int32)
    at = jnp.arange(width) - by
    return jnp.where(
        ((at >= 0) & (at < width))[None, None, :, None], images[:, :, jnp.clip(at, 0, width - 1)], 0
    )


def _rise(keys: jax.Array, images: jax.Array, strength: jax.Array) -> jax.Array:
    """Shift images up or down by up to 30 % of their height, filling with black."""
    return _shift(keys, images.swapaxes(1, 2), strength).swapaxes(1, 2)


OPERATIONS = (
    (lambda keys, images, strength: images, 0.0),
    (DRIFTS["rotation"], 30.0),
    (DRIFTS["brightness"], 0.9),
    (DRIFTS["contrast"], 0.9),
    (_posterise, 1.0),
    (_solarise, 1.0),
    (_shift, 1.0),
    (_rise, 1.0),
)
"""Pairs of an operation `f(keys, images, strength)` and its largest strength.

The strength is drawn evenly between that and its negative.
"""


def strong_augment(key: jax.Array, images: Array) -> Array:
    """Augment each of images [B, H, W, C] by two random operations and a grey square.

    The images are in [0, 1], and the operations are `OPERATIONS`. The side of the square that
    becomes grey is up to half the image's shorter side.
    """
    keys = jax.random.split(key, 3)
    for one in keys[:2]:
        images = jax.vmap(_one)(jax.random.split(one, len(images)), images)
    return jnp.clip(jax.vmap(_cut)(jax.random.split(keys[2], len(images)), images), 0, 1)


def _one(key: jax.Array, image: Array) -> jax.Array:
    """Apply one random operation of RandAugment, such as a rotation, to one image.

    Under vmap every operation is computed, which costs little next to a network.
    """
    key_which, key_strength, key_inside = jax.random.split(key, 3)
    which = jax.random.randint(key_which, (), 0, len(OPERATIONS))
    strength = jax.random.uniform(key_strength, (), minval=-1, maxval=1)
    branches = [
        lambda x, f=f, most=most: f(key_inside[None], x[None], strength * most)[0]
        for f, most in OPERATIONS
    ]
    return jax.lax.switch(which, branches, image)


def _cut(key: jax.Array, image: Array) -> jax.Array:
    """Make a random square of one image grey."""
    height, width = image.shape[:2]
    key_side, key_y, key_x = jax.random.split(key, 3)
    half = jax.random.uniform(key_side) * min(height, width) / 4
    y, x = jax.random.uniform(key_y) * height, jax.random.uniform(key_x) * width
    inside = (jnp.abs(jnp.arange(height) - y) < half)[:, None] & (
        jnp.abs(jnp.arange(width) - x) < half
    )[None, :]
    return jnp.where(inside[..., None], 0.5, image)
