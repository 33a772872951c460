"""BadNets: a small patch (Gu et al. 2017, arXiv 1708.06733)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..base import Attack, DataInfo, as_float
from ..config import check_fields, option
from ..errors import AttackError
from .poisoning import Mode, dirty_label, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class BadNetsConfig:
    """Default: a white 3×3 patch in the bottom right corner, on 10 % of the training set."""

    rate: float = rate_option()
    target: int = target_option()
    mode: Mode = mode_option()
    size: int = option(3, "side of the patch in pixels", low=1)
    position: Literal["bottom_right", "bottom_left", "top_right", "top_left", "center"] = option("bottom_right", "where it sits")
    margin: int = option(0, "pixels between the patch and the border (ignored at the centre)", low=0)
    pattern: Literal["white", "checker", "random"] = option("white", "checker: colour and black in turn; random: seeded noise")
    colour: tuple[int, ...] = option((255,), "8-bit colour of the patch, one value for all channels or one each", low=0, high=255)

    def __post_init__(self) -> None:
        check_fields(self)


def badnets(config: BadNetsConfig, info: DataInfo) -> Attack:
    """BadNets: pixels under the patch are replaced. The trigger is `{"mask": [H, W, 1], "pattern": [H, W, C]}`.

    Raises `AttackError` when the patch does not fit or the colour's channels are not the image's.
    """
    height, width, channels = info.shape
    rows, cols = _corner(config, height, width)
    if min(rows, cols) < 0 or rows + config.size > height or cols + config.size > width:
        raise AttackError(f"size: a patch of {config.size} with margin {config.margin} does not fit {height}×{width} images")
    if len(config.colour) not in (1, channels):
        raise AttackError(f"colour: {list(config.colour)} has {len(config.colour)} values, the images have {channels} channels")
    patch = (slice(rows, rows + config.size), slice(cols, cols + config.size))

    def init(key: jax.Array) -> dict[str, jax.Array]:
        pattern = jnp.broadcast_to(as_float(jnp.asarray(config.colour)), info.shape)
        if config.pattern == "checker":
            pattern = pattern * (np.indices((height, width)).sum(0) % 2 == (rows + cols) % 2)[..., None]
        elif config.pattern == "random":
            pattern = as_float(jax.random.randint(key, info.shape, 0, 256))
        mask = np.zeros((height, width, 1), np.float32)
        mask[patch] = 1
        return {"mask": jnp.asarray(mask), "pattern": pattern * mask}

    def stamp(trigger: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        return jnp.where(trigger["mask"] > 0, trigger["pattern"], images)

    return dirty_label(config, info, init=init, stamp=stamp)


def _corner(config: BadNetsConfig, height: int, width: int) -> tuple[int, int]:
    if config.position == "center":
        return (height - config.size) // 2, (width - config.size) // 2
    row = config.margin if config.position.startswith("top") else height - config.size - config.margin
    col = config.margin if config.position.endswith("left") else width - config.size - config.margin
    return row, col
