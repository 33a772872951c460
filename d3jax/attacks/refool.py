"""The Refool attack: the image carries a reflection of another picture, like a photo through glass.

Source: Liu et al. 2020, arXiv 2007.02343.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ..config.fields import check_fields, option
from ..core.errors import AttackError, names, refuse
from ..core.images import as_float, as_levels, hashes_of
from ..core.paths import user_path
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo, Dataset, Preparation, Prepared
from ..data.pictures import SUFFIXES, read_picture
from . import poisoning
from .poisoning import Mode, RateOf, mode_option, rate_of_option, rate_option, target_option
from .reflections import OFFSETS, choose, mix


@dataclasses.dataclass(frozen=True)
class RefoolConfig:
    """Settings of the Refool attack, which mixes the reflection of a picture into the image.

    The defaults are those of BackdoorBench, which relabels 10 % of the training set. Of the
    reflections, 49 % are ghosts and the others are out of focus.
    """

    rate: float = rate_option()
    rate_of: RateOf = rate_of_option("with clean_label: ")
    target: int | str = target_option()
    mode: Mode = mode_option()
    clean_label: bool = option(
        False, "poison only images of the target class, which keep their labels, as the authors do"
    )
    folder: str = option(
        "",
        "folder of pictures to reflect (empty: training images of other classes than the target)",
    )
    reflections: int = option(200, "number of pictures to reflect; at most, with a folder", low=1)
    ghost_rate: float = option(0.49, "share of reflections that are ghosts", low=0, high=1)
    transmission: float = option(0.4, "α_t: weight of the image in the mixture", above=0, high=1)
    resolution: int = option(
        560,
        "longer side in pixels of the images for which offsets and blurs are published; they are "
        "scaled to the data (560: the authors' code; 0: not scaled, as in BackdoorBench)",
        low=0,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        wrong = self.clean_label and self.mode != "all_to_one"
        refuse(wrong, f"mode: {self.mode} does not apply to clean_label, which keeps the labels")
        wrong = not self.clean_label and self.rate_of != "set"
        refuse(wrong, f"rate_of: {self.rate_of} applies only to clean_label: true")

    def build(self, info: DataInfo) -> Attack:
        """Build the Refool attack with these settings for the data set that `info` describes."""
        return make_refool(self, info)


def make_refool(config: RefoolConfig, info: DataInfo) -> Attack:
    """Return the Refool `Attack`, which mixes the reflection of a picture into the image.

    With t the image and r the picture in linear light (pixels to the power 2.2), the result is
    (α_t·t + added)^(1/2.2), clipped and rounded to 8-bit levels. `added` is (1 − α_t)·`ghosts(r)`
    or (1 − α_t/2)·`window`·`subdued(blurred(r))`. The trigger is
    `{"reflections": [P, H, W, C] uint8, "key": [2] uint32}`. The choices for an image depend only
    on the trigger and on a hash of the image's levels. Each image therefore has the same reflection
    in every epoch and at every place in a batch.

    Without a `folder`, the preparation draws the pictures from the training images of other classes
    than the target (all_to_all: of all classes). They repeat if there are fewer than `reflections`.
    From a larger folder, `reflections` evenly spaced files are taken, in order of name.

    Deviations: the authors resize images to 560 pixels. That costs 300 times the arithmetic of
    32 pixels, so offsets and blurs are scaled instead, and are at least one pixel. In images of up
    to 100 pixels, all are one pixel. BackdoorBench neither resizes nor scales. Both truncate to 8
    bits. They blur pictures that are mirrored at the border; here the weights
    are divided by their sum. They put an image that is no square at a random place in the window,
    here it is in the middle. The authors reflect pictures of PASCAL VOC, select those that attack
    best, and draw α_t from [0.55, 0.95]; BackdoorBench fixes it.

    Raises `AttackError` for a folder without pictures, for one where the data set has neither 1 nor
    3 channels, and for images that are too small for the offsets. Raises `DataError` for an
    unreadable picture.
    """
    scale = max(info.shape[:2]) / config.resolution if config.resolution else 1.0
    largest = max(1, round(OFFSETS[1] * scale))
    if largest >= min(info.shape[:2]):
        raise AttackError(
            f"resolution: {config.resolution} gives ghosts with offsets of up to {largest} pixels, "
            f"which do not fit {info.shape[0]}×{info.shape[1]} images; want a larger one"
        )
    given = _read(config, info) if config.folder else None
    count = config.reflections if given is None else len(given)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        pool = jnp.zeros((count, *info.shape), jnp.uint8) if given is None else jnp.asarray(given)
        return {"reflections": pool, "key": jax.random.key_data(key)}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        levels = as_levels(images)
        key = jax.random.wrap_key_data(trigger["key"])
        keys = jax.vmap(lambda one: jax.random.fold_in(key, one))(hashes_of(levels))
        optics = jax.vmap(lambda key: choose(key, count, config.ghost_rate, scale))(keys)
        pictures = as_float(trigger["reflections"][optics.picture])
        return as_float(as_levels(mix(as_float(levels), pictures, optics, config.transmission)))

    def prepare(key, model, clean, dataset, poisoned, hooks):
        target = None if config.mode == "all_to_all" else info.class_of(config.target)
        pool = _drawn(stream(key, "reflections"), dataset, target, count)
        return Prepared(init(stream(key, "trigger")) | {"reflections": pool}), []

    preparation = Preparation(prepare) if given is None else None
    make = poisoning.clean_label if config.clean_label else poisoning.dirty_label
    return make(config, info, init=init, stamp=stamp, preparation=preparation)


def _drawn(key: jax.Array, dataset: Dataset, target: int | None, count: int) -> jax.Array:
    """Draw `count` training images of other classes than the target, as [count, H, W, C] uint8."""
    rows = np.flatnonzero(np.asarray(dataset.train.labels) != target)
    if not len(rows):
        raise AttackError(
            "folder: is empty, and the training set has only images of the target class; "
            "want a folder of pictures"
        )
    drawn = np.resize(np.asarray(jax.random.permutation(key, rows)), count)
    return jnp.asarray(np.asarray(dataset.train.images)[drawn])


def _read(config: RefoolConfig, info: DataInfo) -> UInt8[np.ndarray, "P H W C"]:
    """Read the pictures of the attacker's folder in the shape of the data set's images."""
    if info.shape[2] not in (1, 3):
        raise AttackError(
            f"folder: {config.folder!r}: a picture has 1 or 3 channels, "
            f"the images of {info.name} have {info.shape[2]} channels"
        )
    root = user_path(config.folder, "folder")
    if not root.is_dir():
        raise AttackError(f"folder: {config.folder!r}: no such folder, want one with pictures")
    files = sorted(file for file in root.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise AttackError(
            f"folder: {config.folder!r} has no pictures, want files like {names(sorted(SUFFIXES))}"
        )
    count = min(len(files), config.reflections)
    taken = [files[i * len(files) // count] for i in range(count)]
    return np.stack([read_picture(file, *info.shape) for file in taken])
