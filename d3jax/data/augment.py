"""Random augmentation of training images: crop, flip and cutout.

Every image draws its own crop and flip. Moves that a batch shares would shift the statistics of
BatchNorm with them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..core.types import Array, DataInfo


def make_augment(info: DataInfo, mode: str = "auto") -> Callable[[jax.Array, Array], Array]:
    """Return `augment(key, images [B, H, W, C]) -> images`, which crops and flips as `info` allows.

    That is `mode` "auto". With "cutout" it also makes a square with a side of `CUT` pixels black.
    With "none" it returns the images as they are.
    """
    if mode == "cutout":
        allowed = make_augment(info)

        def augment_and_cut(key: jax.Array, images: Array) -> jax.Array:
            key_allowed, key_cut = jax.random.split(key)
            return cutout(key_cut, allowed(key_allowed, images), CUT)

        return augment_and_cut
    if mode == "none" or not (info.crop or info.flip):
        return lambda key, images: images

    def augment(key: jax.Array, images: Array) -> Array:
        key_crop, key_flip = jax.random.split(key)
        if info.crop:
            images = random_crop(key_crop, images, info.crop)
        return random_flip(key_flip, images) if info.flip else images

    return augment


def random_crop(key: jax.Array, images: Array, padding: int) -> jax.Array:
    """Shift each image by up to `padding` pixels along both axes, filling with zeros (black)."""
    b, h, w, c = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (b, 2), 0, 2 * padding + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c))

    return jax.vmap(cut)(padded, corners)


CUT = 2
"""Side in pixels of the square that `cutout` makes black in ABL's training.

ABL's parameter is 3, and its code takes half of that, rounded down, in both directions.
"""


def cutout(key: jax.Array, images: Array, side: int) -> jax.Array:
    """Make a random square with a side of `side` pixels black in each image of a batch.

    The centre of the square, or with an even side the pixel after it, lies anywhere in the image.
    The square is therefore cut off at the edges (DeVries & Taylor, arXiv 1708.04552).
    """
    b, h, w, _ = images.shape
    centres = jax.random.randint(key, (b, 2), 0, jnp.array([h, w]))

    def offsets(at, size):
        return jnp.arange(size)[None, :] - at[:, None]

    def within(at, size):
        return (offsets(at, size) >= -(side // 2)) & (offsets(at, size) < side - side // 2)

    cut = within(centres[:, 0], h)[:, :, None] & within(centres[:, 1], w)[:, None, :]
    return jnp.where(cut[..., None], 0.0, images)


def random_flip(key: jax.Array, images: Array) -> jax.Array:
    """Mirror each image left to right with probability one half."""
    return jnp.where(
        jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1)), images[:, :, ::-1], images
    )
