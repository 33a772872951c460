"""The Blended attack: a pattern mixed into the whole image (Chen et al. 2017, arXiv 1712.05526)."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp

from ..config.fields import check_fields, option
from ..core.images import as_float, as_levels
from ..core.types import Array, Attack, DataInfo
from .pattern_files import read_pattern
from .poisoning import Mode, Target, dirty_label, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class BlendedConfig:
    """Settings of the Blended attack, which mixes a pattern into the whole image.

    By default the pattern is seeded uniform noise with a share of 0.2. It is mixed into 10 % of the
    training set.
    """

    rate: float = rate_option()
    target: Target = target_option(mapping=True)
    mode: Mode = mode_option()
    alpha: float = option(0.2, "share of the pattern in the mixture", above=0, high=1)
    image: str = option(
        "",
        "path of the pattern: a picture, resized to the images, or a .npy array of their shape "
        "(empty: seeded noise)",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the Blended attack with these settings for the data set that `info` describes."""
        return make_blended(self, info)


def make_blended(config: BlendedConfig, info: DataInfo) -> Attack:
    """Return the Blended `Attack`, which mixes a pattern into the whole image.

    The stamped image is ⌊(1−α)·x + α·pattern⌋ on 8-bit values. The trigger is
    `{"pattern": [H, W, C] uint8}`.

    The mixture is computed in integers with α as a fraction (denominator ≤ 1000), so that the
    truncation is exact on every backend. It equals the reference's float64 arithmetic on the
    published check values. Where a picture has an alpha channel, α is multiplied by it. Raises what
    `read_pattern` raises for an `image`.
    """
    alpha = Fraction(config.alpha).limit_denominator(1000)
    whole, share = alpha.denominator, alpha.numerator
    given = read_pattern(config.image, info, info.shape[:2]) if config.image else None
    opaque = given is None or bool((given.alpha == 255).all())

    def init(key: jax.Array) -> dict[str, jax.Array]:
        noise = jax.random.randint(key, info.shape, 0, 256).astype(jnp.uint8)
        trigger = {"pattern": noise if given is None else jnp.asarray(given.pixels)}
        if given is None or opaque:
            return trigger
        return trigger | {"alpha": jnp.asarray(given.alpha)}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        levels, pattern = as_levels(images), trigger["pattern"].astype(jnp.int32)
        if opaque:
            return as_float(((whole - share) * levels + share * pattern) // whole)
        mine = share * trigger["alpha"].astype(jnp.int32)
        return as_float(((255 * whole - mine) * levels + mine * pattern) // (255 * whole))

    return dirty_label(config, info, init=init, stamp=stamp)
