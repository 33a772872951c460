"""Random views of images for contrastive learning: SimCLR's augmentation.

SimCLR (Chen et al., ICML 2020, arXiv 2002.05709) compares two views of each image. A view is a
random crop, resized to the image's size, with random colours. Every image draws its own crop, flip,
colours and blur.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..core.types import Array, DataInfo
from .augment import random_flip
from .drift import blur as blurred
from .drift import hue as turned

AREA, RATIO, ATTEMPTS = (0.2, 1.0), (3 / 4, 4 / 3), 10
"""Range of a crop's share of the image, range of its width over its height, and number of draws.

The smallest share is that of DBD's release (arXiv 2202.03423). SimCLR's is 0.08. The first draw
that fits into the image is taken.
"""

JITTERED, STRENGTH, HUE = 0.8, 0.4, 0.1
"""Share of the images with changed colours, and the largest changes.

Brightness, contrast and saturation change by up to the factor 1 ± `STRENGTH`, and the hue by up to
`HUE` turns. These are SimCLR's values at half strength, which it has for CIFAR-10.
"""

GREYED = 0.2
"""The share of the colour images that become grey."""

SIGMA = (0.1, 2.0)
"""Range of the standard deviation of the blur, in pixels of an image of 32 pixels a side."""

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in the grey value of a pixel (ITU-R BT.601)."""

View = Callable[[jax.Array, Array], jax.Array]
"""`view(key, images [B, H, W, C]) -> images`: draws one random view of each image, in [0, 1]."""


def make_views(info: DataInfo, blur: float = 0.5) -> View:
    """Return `view(key, images [B, H, W, C]) -> images`, which draws a random view of each image.

    A view is a resized crop, mirrored where `info` allows it, with changed colours. Of the views,
    the share `blur` is blurred. DBD's release blurs half of them, SimCLR none at CIFAR size. Only
    images of three channels change saturation and hue, or become grey. Sizes may be odd, and the
    height may differ from the width.
    """

    def view(key: jax.Array, images: Array) -> jax.Array:
        keys = jax.random.split(key, 5)
        seen = random_resized_crop(keys[0], images)
        if info.flip:
            seen = random_flip(keys[1], seen)
        seen = color_jitter(keys[2], seen)
        if images.shape[3] == 3:
            seen = random_grey(keys[3], seen)
        return random_blur(keys[4], seen, blur) if blur else seen

    return view


def random_resized_crop(key: jax.Array, images: Array) -> jax.Array:
    """Cut a random box out of each of images [B, H, W, C], and enlarge it to the image's size.

    `crop_boxes` draws the boxes, and `resized` enlarges them.
    """
    return resized(images, *crop_boxes(key, *images.shape[:3]))


def crop_boxes(
    key: jax.Array, count: int, height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draw random boxes in images of a size; return (top, left, height, width), each [count].

    The values are whole numbers as float32. The area is uniform in `AREA` of the image, and the
    logarithm of width over height is uniform in `RATIO`. Deviation: where no draw fits, the box is
    the whole image. torchvision then takes a box in the centre. In a square image no draw in 10
    fits about once in 10⁸ images.
    """
    key_area, key_ratio, key_place = jax.random.split(key, 3)
    drawn = (count, ATTEMPTS)
    low, high = (math.log(bound) for bound in RATIO)
    area = height * width * jax.random.uniform(key_area, drawn, minval=AREA[0], maxval=AREA[1])
    ratio = jnp.exp(jax.random.uniform(key_ratio, drawn, minval=low, maxval=high))
    sides = jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)])  # [2, count, ATTEMPTS]
    sides = jnp.maximum(jnp.round(sides), 1)
    whole = jnp.array([height, width], jnp.float32)[:, None]
    fits = (sides <= whole[..., None]).all(0)
    first = jnp.take_along_axis(sides, fits.argmax(1)[None, :, None], 2)[..., 0]
    sides = jnp.where(fits.any(1), first, whole)
    places = jnp.floor(jax.random.uniform(key_place, (2, count)) * (whole - sides + 1))
    return places[0], places[1], sides[0], sides[1]


def resized(
    images: Array, top: jax.Array, left: jax.Array, height: jax.Array, width: jax.Array
) -> jax.Array:
    """Enlarge a box of each of images [B, H, W, C] to [H, W], by bicubic interpolation.

    The arguments `top`, `left`, `height` and `width` [B] describe the boxes. Pixels outside a box
    do not count. The result is clipped to [0, 1].
    """
    rows = _weights(top, height, images.shape[1])
    columns = _weights(left, width, images.shape[2])
    out = jnp.einsum("bih,bjw,bhwc->bijc", rows, columns, images, precision="highest")
    return jnp.clip(out, 0, 1)


def _weights(first: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Return matrices [B, size, size] that enlarge `length` [B] of a line's pixels to `size`.

    The pixels begin at `first` [B]. Positions are those of pixel centres, and rows sum to 1.
    """
    pixels = jnp.arange(size, dtype=jnp.float32)
    places = first[:, None] - 0.5 + (pixels[None, :] + 0.5) * (length / size)[:, None]
    inside = (pixels[None, :] >= first[:, None]) & (pixels[None, :] < (first + length)[:, None])
    apart = jnp.abs(pixels[None, None, :] - places[:, :, None])
    weights = jnp.where(inside[:, None, :], _cubic(apart), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def _cubic(distance: jax.Array) -> jax.Array:
    """Return Keys' cubic kernel with the parameter −0.5, as in PIL, at distances of at least 0."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))


def color_jitter(key: jax.Array, images: Array) -> jax.Array:
    """Change brightness, contrast, saturation and hue of most images [B, H, W, C] in [0, 1].

    The share `JITTERED` is changed. Images that do not have three channels keep saturation and hue.
    Deviation: the order of the changes is drawn once for the batch and not for each image, so that
    only four are computed.
    """
    key_order, key_factors, key_hue, key_chosen = jax.random.split(key, 4)
    count, channels = len(images), images.shape[3]
    least, most = 1 - STRENGTH, 1 + STRENGTH
    factors = jax.random.uniform(key_factors, (3, count, 1, 1, 1), minval=least, maxval=most)
    turns = jax.random.uniform(key_hue, (count,), minval=-HUE, maxval=HUE)

    def shifted(image: jax.Array, turn: jax.Array) -> jax.Array:
        return turned(key_hue, image[None], turn)[0]

    changes = [
        lambda x: blend(x, jnp.zeros_like(x), factors[0]),
        lambda x: blend(x, grey(x).mean((1, 2, 3), keepdims=True), factors[1]),
        lambda x: blend(x, grey(x), factors[2]),
        lambda x: jax.vmap(shifted)(x, turns),
    ]
    changes = changes if channels == 3 else changes[:2]
    order, changed = jax.random.permutation(key_order, len(changes)), jnp.asarray(images)
    for place in range(len(changes)):
        changed = jax.lax.switch(order[place], changes, changed)
    return jnp.where(jax.random.bernoulli(key_chosen, JITTERED, (count, 1, 1, 1)), changed, images)


def blend(images: Array, others: jax.Array, factors: jax.Array) -> jax.Array:
    """Return factor · image + (1 − factor) · other for each image, clipped to [0, 1].

    `factors` are [B, 1, 1, 1]. With a black image as `others` this changes the brightness, with the
    mean grey value the contrast, and with the grey image the saturation.
    """
    return jnp.clip(factors * images + (1 - factors) * others, 0, 1)


def grey(images: Array) -> jax.Array:
    """Return the grey values [B, H, W, 1] of images: `LUMA` of three channels, else their mean."""
    if images.shape[3] != 3:
        return jnp.asarray(images).mean(-1, keepdims=True)
    return (jnp.asarray(images) * jnp.array(LUMA, jnp.float32)).sum(-1, keepdims=True)


def random_grey(key: jax.Array, images: Array) -> jax.Array:
    """Make each of images [B, H, W, C] grey with the probability `GREYED`."""
    chosen = jax.random.bernoulli(key, GREYED, (len(images), 1, 1, 1))
    return jnp.where(chosen, grey(images), images)


def random_blur(key: jax.Array, images: Array, share: float) -> jax.Array:
    """Blur each of images [B, H, W, C] by a Gaussian with the probability `share`.

    The standard deviation is uniform in `SIGMA`, and grows with the image's shorter side (d3jax's).
    """
    key_sigma, key_chosen = jax.random.split(key)
    least, most = (bound * min(images.shape[1:3]) / 32 for bound in SIGMA)
    sigma = jax.random.uniform(key_sigma, (len(images),), minval=least, maxval=most)
    sigma = jnp.where(jax.random.bernoulli(key_chosen, share, (len(images),)), sigma, 0.0)

    def one(image: jax.Array, strength: jax.Array) -> jax.Array:
        return blurred(key_sigma, image[None], strength)[0]

    return jax.vmap(one)(jnp.asarray(images), sigma)
