"""The WaNet attack: an imperceptible warp of the image (Nguyen, Tran 2021, arXiv 2102.10369)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ..config.fields import check_fields, option
from ..core.types import Array, Attack, DataInfo
from ..data.grid_sample import enlarge, identity_grid, sample
from .cross_copies import Rows, cross_option, crossed, rows_option
from .poisoning import Mode, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class WaNetConfig:
    """Settings of the WaNet attack, which warps the image imperceptibly.

    By default the strength is 0.5 and the field has 4×4 control points. Of every batch 10 % are
    warped. Twice as many are warped with noise, as in the published recipe.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    strength: float = option(0.5, "s: mean displacement of a pixel, in half pixels", above=0)
    grid: int = option(4, "k: side of the k×k field of control points", low=2)
    cross_ratio: float = cross_option(2.0)
    rows: Rows = rows_option()

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the WaNet attack with these settings for the data set that `info` describes."""
        return make_wanet(self, info)


def make_wanet(config: WaNetConfig, info: DataInfo) -> Attack:
    """Return the WaNet `Attack`, which warps the image by a smooth random field.

    The stamped image is x sampled bilinearly at clip(identity + s·field / size, −1, 1). The trigger
    is `{"grid": [H, W, 2] float32}`, the points at which it is sampled.

    The field is k×k draws of U(−1, 1), divided by their mean absolute value and enlarged
    bicubically (section 3.2 of the paper). Noise copies use the field plus U(−1, 1) / size, drawn
    again in every step. They keep their labels (section 3.3). On an image that is not square, the
    field is measured in pixels of each side.
    """
    height, width = info.shape[:2]
    pixel = jnp.array([1 / width, 1 / height])

    def init(key: jax.Array) -> dict[str, jax.Array]:
        field = jax.random.uniform(key, (config.grid, config.grid, 2), minval=-1, maxval=1)
        field = enlarge(field / jnp.abs(field).mean(), height, width)
        return {
            "grid": jnp.clip(identity_grid(height, width) + config.strength * field * pixel, -1, 1)
        }

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return jnp.clip(sample(images, trigger["grid"]), 0, 1)

    def cross(
        trigger: dict[str, jax.Array], key: jax.Array, images: Array, others: Array
    ) -> jax.Array:
        noise = jax.random.uniform(key, (len(images), height, width, 2), minval=-1, maxval=1)
        return jnp.clip(sample(images, jnp.clip(trigger["grid"] + noise * pixel, -1, 1)), 0, 1)

    return crossed(config, info, init=init, stamp=stamp, cross=cross)
