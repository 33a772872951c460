"""The BadNets attack: a small patch as the trigger (Gu et al. 2017, arXiv 1708.06733)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import AttackError, refuse
from ..core.images import as_float, as_levels
from ..core.types import Array, Attack, DataInfo
from .pattern_files import read_pattern
from .poisoning import Mode, Target, dirty_label, mode_option, rate_option, target_option

Corner = Literal["bottom_right", "bottom_left", "top_right", "top_left", "center"]


GRID = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]])
"""The 3×3 patch of NAD, ABL and MCL: 1 is a pixel of the patch's colour, 0 a black pixel."""


@dataclasses.dataclass(frozen=True)
class BadNetsConfig:
    """Settings of the BadNets attack, which pastes a small patch onto the image.

    By default the patch is white, has 3×3 pixels and lies in the bottom right corner. It is pasted
    onto 10 % of the training set.
    """

    rate: float = rate_option()
    target: Target = target_option(mapping=True)
    mode: Mode = mode_option()
    size: int = option(3, "side of the patch in pixels", low=1)
    position: Corner = option("bottom_right", "place of the patch in the image")
    margin: int = option(
        0, "pixels between the patch and the border (ignored at the centre)", low=0
    )
    pattern: Literal["white", "checker", "grid", "random"] = option(
        "white",
        "white: `colour` everywhere; checker: `colour` and black in turn; "
        "grid: the 3×3 patch of NAD, ABL and MCL; random: seeded noise",
    )
    colour: tuple[int, ...] = option(
        (255,),
        "8-bit colour of the patch: one value for all channels, or one for each",
        low=0,
        high=255,
    )
    image: str = option(
        "",
        "path of the patch: a picture (alpha is kept), resized to `size` pixels a side, or a .npy "
        "array of that size; replaces `pattern` and `colour` (empty: none)",
        added=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        refuse(
            self.image and self.pattern != "white",
            f"pattern: {self.pattern} does not apply where an image is given",
        )
        refuse(
            self.pattern == "grid" and self.size != len(GRID),
            f"pattern: grid has {len(GRID)} pixels a side, got size: {self.size}",
        )

    def build(self, info: DataInfo) -> Attack:
        """Build the BadNets attack with these settings for the data set that `info` describes."""
        return make_badnets(self, info)


def make_badnets(config: BadNetsConfig, info: DataInfo) -> Attack:
    """Return the BadNets `Attack`, which pastes a small patch over pixels of the image.

    The trigger is `{"mask": [H, W, 1], "pattern": [H, W, C]}`. The mask is 1 under the patch, and
    the alpha of the picture under a picture with alpha, where the mixture is rounded to 8-bit
    levels. Raises `AttackError` where the patch does not fit the images, or where `colour` has
    neither one value nor one for each channel. Raises what `read_pattern` raises for an `image`.
    """
    height, width, channels = info.shape
    if len(config.colour) not in (1, channels):
        raise AttackError(
            f"colour: {list(config.colour)} has {len(config.colour)} values, "
            f"the images have {channels} channels"
        )
    patch = corner(config.size, config.position, config.margin, info)

    given = read_pattern(config.image, info, (config.size, config.size)) if config.image else None

    def put(values: np.ndarray | int) -> np.ndarray:
        """Return an image [H, W, 1 or C] float32, `values` under the patch and 0 elsewhere."""
        depth = np.shape(values)[2:] or (1,)
        image = np.zeros((height, width, *depth), np.float32)
        image[patch] = values if np.ndim(values) != 2 else np.asarray(values)[..., None]
        return image

    def init(key: jax.Array) -> dict[str, jax.Array]:
        if given is not None:
            return {
                "mask": jnp.asarray(put(as_float(given.alpha))),
                "pattern": jnp.asarray(put(as_float(given.pixels))),
            }
        pattern = jnp.broadcast_to(as_float(jnp.asarray(config.colour)), info.shape)
        if config.pattern == "checker":
            pattern = pattern * put((np.indices((config.size,) * 2).sum(0) + 1) % 2)
        elif config.pattern == "grid":
            pattern = pattern * put(GRID)
        elif config.pattern == "random":
            pattern = as_float(jax.random.randint(key, info.shape, 0, 256))
        mask = put(1)
        return {"mask": jnp.asarray(mask), "pattern": pattern * mask}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        mask, pattern = trigger["mask"], trigger["pattern"]
        stamped = jnp.where(mask > 0, pattern, images)
        if given is None:
            return stamped
        soft = (mask > 0) & (mask < 1)
        return jnp.where(soft, as_float(as_levels(images + mask * (pattern - images))), stamped)

    return dirty_label(config, info, init=init, stamp=stamp)


def corner(size: int, position: Corner, margin: int, info: DataInfo) -> tuple[slice, slice]:
    """Return where a square patch lies in an image: the slices of its rows and of its columns.

    Raises `AttackError` where the patch does not fit the images.
    """
    height, width = info.shape[:2]
    if position == "center":
        row, col = (height - size) // 2, (width - size) // 2
    else:
        row = margin if position.startswith("top") else height - size - margin
        col = margin if position.endswith("left") else width - size - margin
    if min(row, col) < 0 or row + size > height or col + size > width:
        raise AttackError(
            f"size: a patch of {size} with margin {margin} does not fit {height}×{width} images"
        )
    return slice(row, row + size), slice(col, col + size)
