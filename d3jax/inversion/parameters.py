"""Triggers as mask and pattern, and the raw parameters that an inversion optimises."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from ..core.types import Array, Params

LEVEL = 1 / 255
"""One 8-bit level."""


class Trigger(NamedTuple):
    """An inverted trigger: a `mask` of the share of a pixel to remove, and a `pattern` to add.

    An image x becomes clip((1 − `mask`) · x + `pattern`, 0, 1). `mask` [..., H, W, 1] in [0, 1] is
    the share of each pixel that is removed. `pattern` [..., H, W, C] is added. For Neural Cleanse
    it is mask · Δ, and for an additive trigger it may be negative.
    """

    mask: Float32[jax.Array, "*L H W 1"]
    pattern: Float32[jax.Array, "*L H W C"]


def stamp(trigger: Trigger, images: Float32[Array, "B H W C"]) -> Float32[jax.Array, "B H W C"]:
    """Return images [B, H, W, C] in [0, 1] with one inverted trigger stamped on all of them."""
    return jnp.clip((1 - trigger.mask[None]) * images + trigger.pattern[None], 0, 1)


def random_parameters(key: jax.Array, shape: tuple[int, int, int], preset: str) -> Params:
    """Return random initial parameters of one trigger of an inversion, for images of `shape`."""
    height, width, _ = shape
    first, second = jax.random.split(key)
    if preset == "pixel":
        return {"more": jax.random.uniform(first, shape), "less": jax.random.uniform(second, shape)}
    raw = {
        "mask": jax.random.uniform(first, (height, width, 1)),
        "pattern": jax.random.uniform(second, shape),
    }
    return (
        jax.tree.map(lambda x: jnp.arctanh((x - 0.5) * (2 - 1e-7)), raw) if preset == "nc" else raw
    )


def trigger_of(raw: Params, preset: str) -> Trigger:
    """Convert raw parameters [L, ...] of trigger inversion to the triggers that they describe."""
    if preset == "pixel":
        change = jnp.clip(raw["more"], 0, 1) - jnp.clip(raw["less"], 0, 1)
        return Trigger(jnp.zeros_like(change[..., :1]), change)
    mask, pattern = (
        (raw["mask"], raw["pattern"])
        if preset == "fixed"
        else map(_squash, (raw["mask"], raw["pattern"]))
    )
    return Trigger(mask, mask * pattern)


def tidy(raw: Params, preset: str) -> Params:
    """Return raw trigger parameters; if the preset is pixel, clipped to [0, 1] and tiny values 0.

    For pixel, both patterns are clipped to [0, 1], and values under one 8-bit level become 0.
    Otherwise nothing changes.
    """
    if preset != "pixel":
        return raw
    return jax.tree.map(lambda part: jnp.where(part < LEVEL, 0, jnp.clip(part, 0, 1)), raw)


def size_of(raw: Params, preset: str) -> jax.Array:
    """Return the size [L] of each trigger, the term of the inversion's loss that keeps it small.

    It is ‖mask‖₁, or for pixel the smooth count Σ max_c(tanh(p / 10) / 2 + 1/2) of both patterns.
    """
    if preset == "pixel":
        # The maximum is taken before tanh. A compiler may compute tanh twice, with different
        # rounding. Then the maximum can equal none of the values, and its gradient is 0/0.
        return jnp.asarray(sum(_squash(part.max(-1) / 10).sum((-2, -1)) for part in raw.values()))
    return trigger_of(raw, preset).mask.sum((-3, -2, -1))


def count_of(raw: Params) -> jax.Array:
    """Return how many pixels [L] each of L additive triggers changes, from tidied parameters."""
    return (trigger_of(raw, "pixel").pattern != 0).any(-1).sum((-2, -1)).astype(jnp.float32)


def _squash(x: jax.Array) -> jax.Array:
    """Map any number to (0, 1) by tanh, with Neural Cleanse's constants."""
    return jnp.tanh(x) / (2 - 1e-7) + 0.5
