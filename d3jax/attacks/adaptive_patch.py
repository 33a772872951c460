"""The Adaptive-Patch attack: several weak patches in training, and cover images.

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
from .badnets import corner
from .covers import cover_option, keys_of_rows, with_covers
from .pattern_files import read_pattern
from .poisoning import Mode, dirty_label, mode_option, rate_option, target_option

COUNT = 4
"""Number of patches."""
CORNERS = ("bottom_right", "bottom_left", "top_left", "top_right")


@dataclasses.dataclass(frozen=True)
class AdaptivePatchConfig:
    """Settings of the Adaptive-Patch attack, in which each training image gets one of four patches.

    By default 0.3 % of the training set is poisoned, and twice as many images are covers.
    """

    rate: float = rate_option(0.003)
    cover_rate: float = cover_option(0.006)
    target: int | str = target_option()
    mode: Mode = mode_option()
    alphas: tuple[float, ...] = option(
        (0.5, 0.2, 0.5, 0.3), "opacity of each of the four patches in training", low=0, high=1
    )
    shown: tuple[int, ...] = option(
        (0, 2),
        "numbers of the patches that are put on together at test time",
        low=0,
        high=3,
        filled=True,
    )
    images: tuple[str, ...] = option(
        (),
        "paths of four pictures with alpha, or .npy arrays, of the size of the images (empty: "
        "patches of seeded noise)",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        refuse(len(self.alphas) != COUNT, f"alphas: want {COUNT} values, got {len(self.alphas)}")
        refuse(
            len(self.images) not in (0, COUNT),
            f"images: want {COUNT} paths or none, got {len(self.images)}",
        )

    def build(self, info: DataInfo) -> Attack:
        """Build the Adaptive-Patch attack with these settings for the data set of `info`."""
        return make_adaptive_patch(self, info)


def make_adaptive_patch(config: AdaptivePatchConfig, info: DataInfo) -> Attack:
    """Return the Adaptive-Patch `Attack`, in which a training image gets one of four patches.

    Training images get the patch at its opacity, rounded to 8-bit levels. Which patch an image gets
    is drawn at random. Poisoned images get the target's label, and cover images keep theirs. At
    test time the patches `shown` are put on together and opaque. The trigger is
    `{"patterns": [4, H, W, C] float32, "masks": [4, H, W, 1] float32, "key": [2] uint32}`.

    Deviations: without pictures the patches are seeded noise: two squares of 10/32 and one of 8/32
    of the image's side in corners, and 3/32 in all four corners as the third. The published ones
    are pictures. The published recipe gives each patch exactly a quarter of the images. Its test
    trigger has another picture in place of the first patch.

    Raises what `read_pattern` raises.
    """
    given = [read_pattern(path, info, info.shape[:2], "images") for path in config.images]
    masks = np.stack([as_float(each.alpha) for each in given] or _masks(info))
    alphas = jnp.asarray(config.alphas, jnp.float32)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        patterns = jax.random.randint(stream(key, "patterns"), (COUNT, *info.shape), 0, 256)
        if given:
            patterns = jnp.stack([jnp.asarray(each.pixels) for each in given])
        return {
            "patterns": as_float(patterns) * masks.astype(bool),
            "masks": jnp.asarray(masks),
            "key": jax.random.key_data(stream(key, "rows")),
        }

    def mix(images: Array, pattern: jax.Array, mask: jax.Array) -> jax.Array:
        return as_float(as_levels(images + mask * (pattern - images)))

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        for number in config.shown:
            images = mix(images, trigger["patterns"][number], trigger["masks"][number])
        return jnp.asarray(images)

    def in_training(trigger: dict[str, jax.Array], rows: Array, images: Array) -> jax.Array:
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, COUNT))
        chosen = draw(keys_of_rows(trigger, rows))
        mask = trigger["masks"][chosen] * alphas[chosen][:, None, None, None]
        return mix(images, trigger["patterns"][chosen], mask)

    attack = dirty_label(config, info, init=init, stamp=stamp)
    return with_covers(attack, config.cover_rate, in_training)


def _masks(info: DataInfo) -> list[np.ndarray]:
    """Return the places [H, W, 1] float32 of the four patches of seeded noise."""
    masks = np.zeros((COUNT, *info.shape[:2], 1), np.float32)
    side = min(info.shape[:2])

    def sized(share: int) -> int:
        return max(1, round(side * share / 32))

    for number, share in ((0, 10), (1, 10), (3, 8)):
        masks[number][corner(sized(share), CORNERS[number], 0, info)] = 1
    for place in CORNERS:
        masks[2][corner(sized(3), place, 0, info)] = 1
    return list(masks)
