"""The Refool attack: the image carries a reflection of another picture, like a photo through glass.

Source: Liu et al. 2020, arXiv 2007.02343.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from ..config.fields import check_fields, option
from ..core.errors import AttackError, names, refuse
from ..core.images import as_float, as_levels
from ..core.paths import user_path
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo, Dataset, Preparation, Prepared
from ..data.pictures import SUFFIXES, read_picture
from . import poisoning
from .poisoning import Mode, RateOf, mode_option, rate_option, target_option

GAMMA = 2.2
"""The exponent that turns pixels in [0, 1] into linear light."""
OFFSETS = (3, 8)
"""The smallest and the largest offset of a ghost in pixels, at a side of `resolution`."""
SIGMAS = (1.0, 5.0)
"""The range of the blur's standard deviation in pixels, at a side of `resolution`."""


@dataclasses.dataclass(frozen=True)
class RefoolConfig:
    """Settings of the Refool attack, which mixes the reflection of a picture into the image.

    The defaults are those of BackdoorBench, which relabels 10 % of the training set. Of the
    reflections, 49 % are ghosts and the others are out of focus.
    """

    rate: float = rate_option()
    rate_of: RateOf = option(
        "set",
        "with clean_label: set: `rate` is a share of the training set; class: of the target class",
    )
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


class Optics(NamedTuple):
    """The random choices for the reflections in B images; one without `ghost` is out of focus.

    `picture` are rows of the pool. A ghost has `offset` [B, 2] (rows, columns) in pixels and
    `share`, the weight α of its first copy. An out-of-focus reflection has `sigma` in pixels and
    `attenuation`.
    """

    picture: Int32[Array, " B"]
    ghost: Bool[Array, " B"]
    offset: Int32[Array, "B 2"]
    share: Float32[Array, " B"]
    sigma: Float32[Array, " B"]
    attenuation: Float32[Array, " B"]


def make_refool(config: RefoolConfig, info: DataInfo) -> Attack:
    """Return the Refool `Attack`, which mixes the reflection of a picture into the image.

    With t the image and r the picture in linear light (pixels to the power 2.2), the result is
    (α_t·t + added)^(1/2.2), clipped and rounded to 8-bit levels. `added` is (1 − α_t)·`ghosts(r)`
    or (1 − α_t/2)·`window`·`subdued(blurred(r))`. The trigger is
    `{"reflections": [P, H, W, C] uint8, "key": [2] uint32}`. The choices for an image depend only
    on the trigger and on a hash of the image's levels. An image so has the same reflection in every
    epoch and at every place in a batch.

    Without a `folder`, the preparation draws the pictures from the training images of other classes
    than the target (all_to_all: of all classes). They repeat where there are fewer than
    `reflections`. Of a folder with more pictures, `reflections` are taken at equal distances.

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
        keys = _keys_of_images(jax.random.wrap_key_data(trigger["key"]), levels)
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


def choose(key: jax.Array, pool: int, ghost_rate: float, scale: float) -> Optics:
    """Draw the `Optics` of one image, without the axis B, for a pool of `pool` pictures.

    `scale` is the image's longer side, divided by that for which offsets and blurs are published.
    """

    def uniform(name: str, low: float, high: float) -> jax.Array:
        return jax.random.uniform(stream(key, name), minval=low, maxval=high)

    offset = jax.random.randint(stream(key, "offset"), (2,), OFFSETS[0], OFFSETS[1] + 1)
    return Optics(
        picture=jax.random.randint(stream(key, "picture"), (), 0, pool),
        ghost=jax.random.bernoulli(stream(key, "ghost"), ghost_rate),
        offset=jnp.maximum(jnp.round(scale * offset).astype(jnp.int32), 1),
        share=jnp.abs(jax.random.bernoulli(stream(key, "side")) - uniform("share", 0.15, 0.5)),
        sigma=jnp.maximum(scale * uniform("sigma", *SIGMAS), 1.0),
        attenuation=uniform("attenuation", 1.08, 1.18),
    )


def mix(images: Array, pictures: Array, optics: Optics, transmission: float) -> jax.Array:
    """Mix the reflections of `pictures` into `images`, both [B, H, W, C] float32 in [0, 1]."""
    t, r = images**GAMMA, pictures**GAMMA
    doubled = (1 - transmission) * ghosts(r, optics.offset, optics.share)
    soft = subdued(blurred(r, optics.sigma), t, optics.attenuation)
    soft = (1 - transmission / 2) * window(*images.shape[1:3]) * soft
    added = jnp.where(optics.ghost[:, None, None, None], doubled, soft)
    return jnp.power(jnp.clip(transmission * t + added, 0, 1), 1 / GAMMA)


def ghosts(r: Array, offset: Array, share: Array) -> jax.Array:
    """Return pictures [B, H, W, C] as reflected by both faces of a thick pane of glass.

    It is α·r + (1 − α)·r shifted by the offset, where the two overlap, enlarged to [H, W].
    """
    rows, columns = (_overlap(side, offset[:, i]) for i, side in enumerate(r.shape[1:3]))
    first, second = (_along(r, *lines) for lines in zip(rows, columns, strict=True))
    weight = jnp.asarray(share)[:, None, None, None]
    return weight * first + (1 - weight) * second


def blurred(r: Array, sigma: Array) -> jax.Array:
    """Return pictures [B, H, W, C] blurred by a Gaussian that ends at ⌈2σ⌉ pixels."""

    def weights(side: int) -> jax.Array:
        apart = np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
        wide = sigma[:, None, None]
        line = jnp.exp(-(apart**2) / (2 * wide**2)) * (apart <= jnp.ceil(2 * wide))
        return line / line.sum(2, keepdims=True)

    return _along(r, weights(r.shape[1]), weights(r.shape[2]))


def subdued(r: Array, t: Array, attenuation: Array) -> jax.Array:
    """Darken reflections r [B, H, W, C] where r + t is too bright, for each channel on its own.

    The mean excess over 1 of the pixels with r + t > 1, times the attenuation, is subtracted.
    """
    total = r + t
    bright = total > 1
    mean = (total * bright).sum((1, 2), keepdims=True) / (bright.sum((1, 2), keepdims=True) + 1e-6)
    excess = jnp.maximum(mean, 1) - 1
    return jnp.clip(r - attenuation[:, None, None, None] * excess, 0, 1)


def window(height: int, width: int) -> np.ndarray:
    """Return the weights [H, W, 1] of out-of-focus reflections, exp(−(u² + v²)/4).

    u and v are 0 in the middle of the image, and ±3 at the ends of its longer side.
    """
    longest = max(height, width)
    u, v = (6 * (np.arange(side) - (side - 1) / 2) / (longest - 1) for side in (height, width))
    return np.exp(-np.add.outer(u**2, v**2) / 4).astype(np.float32)[:, :, None]


def _overlap(side: int, offset: Array) -> tuple[jax.Array, jax.Array]:
    """Return the matrices [B, side, side] that enlarge two copies' overlap along one axis.

    The first samples the unshifted copy, the second the shifted one, both bilinearly.
    """
    offset, pixels = offset[:, None], np.arange(side)
    inside = jnp.clip((pixels + 0.5) * (side - offset) / side - 0.5, 0, side - offset - 1)

    def sampling(at: jax.Array) -> jax.Array:
        return jnp.maximum(1 - jnp.abs(at[:, :, None] - pixels), 0)

    return sampling(inside + offset), sampling(inside)


def _along(r: Array, rows: Array, columns: Array) -> jax.Array:
    """Multiply the rows and the columns of images [B, H, W, C] by matrices, others for each."""
    return jnp.einsum("bih,bjw,bhwc->bijc", rows, columns, r, precision="highest")


def _keys_of_images(key: jax.Array, levels: Array) -> jax.Array:
    """Return one random key for each image [B, H, W, C] of 8-bit levels, from a hash of it.

    The hash is the sum of the levels with random weights, modulo 2³².
    """
    weights = jax.random.bits(stream(key, "hash"), levels.shape[1:], jnp.uint32)
    hashes = (levels.astype(jnp.uint32) * weights).sum((1, 2, 3), dtype=jnp.uint32)
    return jax.vmap(lambda one: jax.random.fold_in(key, one))(hashes)


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
