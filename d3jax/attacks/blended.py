"""Blended: a whole-image pattern mixed in (Chen et al. 2017, arXiv 1712.05526)."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import AttackError
from ..core.images import as_float, as_levels
from ..core.paths import user_path
from ..core.types import Array, Attack, DataInfo
from ..data.pictures import read_picture
from .poisoning import Mode, dirty_label, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class BlendedConfig:
    """Default: 0.2 of a seeded uniform-noise pattern, on 10 % of the training set."""

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    alpha: float = option(0.2, "share of the pattern in the mixture", above=0, high=1)
    image: str = option(
        "", "an image file as the pattern, resized to the data set's shape (empty: seeded noise)"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Return the attack for a data set."""
        return make_blended(self, info)


def make_blended(config: BlendedConfig, info: DataInfo) -> Attack:
    """Blended: ⌊(1−α)·x + α·pattern⌋ on 8-bit values. The trigger is `{"pattern": [H, W, C] uint8}`.

    Computed in integers with α as a fraction (denominator ≤ 1000), so that the truncation is exact on every backend;
    it equals the reference's float64 arithmetic on the published check values. Raises `DataError` for an unreadable image.
    """
    alpha = Fraction(config.alpha).limit_denominator(1000)
    whole, share = alpha.denominator, alpha.numerator
    from_file = _read(config.image, info) if config.image else None

    def init(key: jax.Array) -> dict[str, jax.Array]:
        noise = jax.random.randint(key, info.shape, 0, 256).astype(jnp.uint8)
        return {"pattern": noise if from_file is None else jnp.asarray(from_file)}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        mixed = (whole - share) * as_levels(images) + share * trigger["pattern"].astype(jnp.int32)
        return as_float(mixed // whole)

    return dirty_label(config, info, init=init, stamp=stamp)


def _read(path: str, info: DataInfo) -> np.ndarray:
    height, width, channels = info.shape
    if channels not in (1, 3):
        raise AttackError(
            f"image: {path!r} is grey or colour, the images of {info.name} have {channels} channels"
        )
    return read_picture(user_path(path, "image"), height, width, channels)
