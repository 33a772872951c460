"""The Blended attack: a pattern mixed into the whole image (Chen et al. 2017, arXiv 1712.05526)."""

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
    """Settings of the Blended attack, which mixes a pattern into the whole image.

    By default the pattern is seeded uniform noise with a share of 0.2. It is mixed into 10 % of the
    training set.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    alpha: float = option(0.2, "share of the pattern in the mixture", above=0, high=1)
    image: str = option(
        "", "path of a picture to use as the pattern, resized to the images (empty: seeded noise)"
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
    published check values. Raises `DataError` for an unreadable `image`, and `AttackError` for an
    `image` where the data set has neither 1 nor 3 channels.
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
    """Return the picture at `path` in the shape of the data set's images, [H, W, C] uint8."""
    height, width, channels = info.shape
    if channels not in (1, 3):
        raise AttackError(
            f"image: {path!r}: a picture has 1 or 3 channels, "
            f"the images of {info.name} have {channels} channels"
        )
    return read_picture(user_path(path, "image"), height, width, channels)
