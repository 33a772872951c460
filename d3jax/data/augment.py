"""Random crop and flip, per image: moves shared by a batch would move BatchNorm's statistics with them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..base import DataInfo


def make_augment(info: DataInfo, mode: str = "auto") -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`augment(key, images [B, H, W, C]) -> images`: what `info` allows ("auto") or nothing ("none")."""
    if mode == "none" or not (info.crop or info.flip):
        return lambda key, images: images

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        key_crop, key_flip = jax.random.split(key)
        if info.crop:
            images = random_crop(key_crop, images, info.crop)
        return random_flip(key_flip, images) if info.flip else images

    return augment


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Each image shifted by up to `padding` pixels both ways, zeros (black) moving in."""
    b, h, w, c = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (b, 2), 0, 2 * padding + 1)
    cut = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c))
    return jax.vmap(cut)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image mirrored left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1)), images[:, :, ::-1], images)
