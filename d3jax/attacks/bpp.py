"""The BPP attack: fewer colours as the trigger (Wang, Zhai and Ma 2022, arXiv 2205.13383)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ..config.fields import check_fields, option
from ..core.images import as_float, as_levels
from ..core.types import Array, Attack, DataInfo
from .cross_copies import Rows, cross_option, crossed, rows_option
from .poisoning import Mode, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class BPPConfig:
    """Settings of the BPP attack, which reduces the number of colours of the image.

    By default a channel has 8 levels, without dithering. Of every batch 10 % are poisoned, and as
    many become negative copies (see `make_bpp`).
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    levels: int = option(8, "number of values that a channel may have", low=2, high=128)
    dither: bool = option(
        False, "spread each pixel's rounding error over its neighbours (Floyd and Steinberg 1976)"
    )
    cross_ratio: float = cross_option(1.0)
    rows: Rows = rows_option()

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the BPP attack with these settings for the data set that `info` describes."""
        return make_bpp(self, info)


def make_bpp(config: BPPConfig, info: DataInfo) -> Attack:
    """Return the BPP `Attack`, which quantises the colours of the image.

    The stamped image is ⌊round(x / 255 · (levels − 1)) / (levels − 1) · 255⌋ on 8-bit values. The
    trigger has no parameters: it is `{}`.

    Negative copies keep their labels. They are x + q(z) − z, clipped, with the quantisation q and
    another image z of the batch. Deviation: the recipe draws z from the whole training set.
    """
    steps = config.levels - 1

    def nearest(levels: jax.Array) -> jax.Array:
        # Integer arithmetic is exact here: there are no ties, because 255 is odd.
        return (2 * steps * levels + 255) // 510

    def stamp(trigger: dict, images: Array) -> jax.Array:
        levels = as_levels(images)
        squeezed = _dithered(levels, steps) if config.dither else nearest(levels)
        return as_float(255 * squeezed // steps)

    def cross(trigger: dict, key: jax.Array, images: Array, others: Array) -> jax.Array:
        return jnp.clip(images + stamp(trigger, others) - others, 0, 1)

    return crossed(config, info, init=lambda key: {}, stamp=stamp, cross=cross)


def _dithered(levels: jax.Array, steps: int) -> jax.Array:
    """Quantise 8-bit images [B, H, W, C] to colour numbers 0…steps by Floyd–Steinberg dithering.

    Each pixel's rounding error is passed on to the pixels to its right and below it.
    """

    def pixel(carried, at):
        """Quantise one pixel of every image, and return its rounding error to pass on.

        `right` is the error from its left neighbour, and `above` the error from the row before.
        """
        right, (value, above) = carried, at
        wanted = value + above + right
        chosen = jnp.clip(jnp.round(wanted), 0, steps)
        error = wanted - chosen
        return 7 / 16 * error, (chosen, error)

    def row(above, values):
        _, (chosen, error) = jax.lax.scan(pixel, jnp.zeros_like(values[0]), (values, above))
        pad = jnp.zeros_like(error[:1])
        before, after = jnp.concatenate([pad, error[:-1]]), jnp.concatenate([error[1:], pad])
        return 5 / 16 * error + 1 / 16 * before + 3 / 16 * after, chosen

    values = jnp.transpose(levels * (steps / 255), (1, 2, 0, 3))  # [H, W, B, C]
    _, chosen = jax.lax.scan(row, jnp.zeros_like(values[0]), values)
    return jnp.transpose(chosen, (2, 0, 1, 3)).astype(jnp.int32)
