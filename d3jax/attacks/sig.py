"""The SIG attack: a sinusoidal signal as the trigger (Barni et al. 2019, arXiv 1902.11237)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..core.images import as_float, as_levels
from ..core.types import Array, Attack, DataInfo
from .poisoning import RateOf, clean_label, rate_of_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class SIGConfig:
    """Settings of the SIG attack, which adds a sinusoidal signal to target-class images.

    By default the amplitude is 40 of 255 levels, with six periods across the image. The poisoned
    images make up 10 % of the training set.
    """

    rate: float = rate_option()
    rate_of: RateOf = rate_of_option()
    target: int | str = target_option()
    delta: float = option(40.0, "Δ: amplitude of the signal in 8-bit levels", above=0, high=255)
    frequency: float = option(
        6.0, "f: periods of the signal across the width of the image", above=0
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the SIG attack with these settings for the data set that `info` describes."""
        return make_sig(self, info)


def make_sig(config: SIGConfig, info: DataInfo) -> Attack:
    """Return the SIG `Attack`, which adds a sinusoidal signal to target-class images.

    The stamped image is ⌊x + Δ·sin(2π j f / W)⌋ at column j, clipped to 8 bits. It is the same for
    all rows and channels. The trigger is `{"offset": [W] int32}`.

    The sine is computed in float64, and the trigger is its floor, because ⌊x + s⌋ = x + ⌊s⌋ for
    whole x. This is exact, whereas float32 sums would be one level off in some pixels.
    """
    columns = np.arange(info.shape[1])
    offset = np.floor(
        config.delta * np.sin(2 * np.pi * columns * config.frequency / info.shape[1])
    ).astype(np.int32)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"offset": jnp.asarray(offset)}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return as_float(jnp.clip(as_levels(images) + trigger["offset"][:, None], 0, 255))

    return clean_label(config, info, init=init, stamp=stamp)
