"""The Adaptive-Blend attack: weak and partial triggers in training, and cover images.

Source: Qi et al. 2023, "Revisiting the Assumption of Latent Separability", ICLR.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import refuse
from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo
from .covers import cover_option, keys_of_rows, with_covers
from .pattern_files import read_pattern
from .poisoning import Mode, dirty_label, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class AdaptiveBlendConfig:
    """Settings of the Adaptive-Blend attack, which blends a part of a pattern into each image.

    By default 0.3 % of the training set is poisoned, and as many images are covers.
    """

    rate: float = rate_option(0.003)
    cover_rate: float = cover_option(0.003)
    target: int | str = target_option()
    mode: Mode = mode_option()
    alpha: float = option(0.15, "share of the pattern in training images", above=0, high=1)
    test_alpha: float = option(0.2, "share of the pattern at test time", above=0, high=1)
    pieces: int = option(4, "the pattern is cut into pieces × pieces rectangles", low=1)
    hidden: int = option(8, "rectangles that each training image lacks", low=0)
    image: str = option(
        "", "path of the pattern: a picture or a .npy array, see blended (empty: seeded noise)"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        refuse(
            self.hidden >= self.pieces**2,
            f"hidden: {self.hidden} of {self.pieces**2} rectangles leaves no trigger, want fewer",
        )

    def build(self, info: DataInfo) -> Attack:
        """Build the Adaptive-Blend attack with these settings for the data set of `info`."""
        return make_adaptive_blend(self, info)


def make_adaptive_blend(config: AdaptiveBlendConfig, info: DataInfo) -> Attack:
    """Return the Adaptive-Blend `Attack`, which blends a part of a pattern into each image.

    A training image becomes x + α·m·(pattern − x), rounded to 8-bit levels. Its mask m hides
    `hidden` random rectangles, a different set for every image. Poisoned images get the target's
    label, and cover images keep theirs. At test time the whole pattern is blended with
    `test_alpha`. The trigger is `{"pattern": [H, W, C] float32, "key": [2] uint32}`. Where a
    picture has an alpha channel, both shares are multiplied by it, and the trigger has `alpha`
    [H, W, 1] float32.

    Deviation: the pattern is seeded noise where no picture is given. The published one is a picture
    ("hello kitty"). Raises what `read_pattern` raises.
    """
    given = read_pattern(config.image, info, info.shape[:2]) if config.image else None
    places = _rectangles(config.pieces, *info.shape[:2])

    def init(key: jax.Array) -> dict[str, jax.Array]:
        pattern = jax.random.randint(stream(key, "pattern"), info.shape, 0, 256)
        if given is not None:
            pattern = jnp.asarray(given.pixels)
        trigger = {"pattern": as_float(pattern), "key": jax.random.key_data(stream(key, "rows"))}
        if given is None or (given.alpha == 255).all():
            return trigger
        return trigger | {"alpha": as_float(jnp.asarray(given.alpha))}

    def blend(trigger: dict[str, jax.Array], images: Array, share: jax.Array | float) -> jax.Array:
        share = share * trigger.get("alpha", 1.0)
        return as_float(as_levels(images + share * (trigger["pattern"] - images)))

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return blend(trigger, images, config.test_alpha)

    def masks(trigger: dict[str, jax.Array], rows: Array) -> jax.Array:
        """Return the masks [B, H, W, 1] float32 of training images: 1 where a rectangle shows."""
        count = config.pieces**2
        orders = jax.vmap(lambda key: jax.random.permutation(key, count))(
            keys_of_rows(trigger, rows)
        )
        return (orders >= config.hidden)[:, places][..., None].astype(jnp.float32)

    def in_training(trigger: dict[str, jax.Array], rows: Array, images: Array) -> jax.Array:
        return blend(trigger, images, config.alpha * masks(trigger, rows))

    attack = dirty_label(config, info, init=init, stamp=stamp)
    return with_covers(attack, config.cover_rate, in_training)


def _rectangles(pieces: int, height: int, width: int) -> np.ndarray:
    """Return the number [H, W] of the rectangle that each pixel lies in, row by row."""
    rows, cols = (np.arange(side) * pieces // side for side in (height, width))
    return rows[:, None] * pieces + cols
