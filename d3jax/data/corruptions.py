"""Common corruptions of images at five severities, as in a well-known benchmark of robustness.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261. Ten of its fifteen corruptions are
here, and `saturate` of its further ones. Glass blur, zoom blur, snow, frost and elastic transform
are left out. The strengths are the benchmark's for ImageNet. Noise is drawn for one image and is
the same for all images of a batch, so a result does not depend on the other images.

Deviations: the blurs are a disk with a soft edge and a one-sided line. Fog is a sum of random grids
and not a plasma fractal. JPEG has no subsampling of colours. Results are not rounded to 8 bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from ..core.dct import dct_matrix
from ..core.types import Array

DISK = 10
"""The largest radius of a blur in pixels."""
LINE = 41
"""The largest length of a motion blur in pixels."""
PHOTONS = 128
"""The largest number of photons that a pixel gets in shot noise.

Its mean is at most 60, so that more have a probability under 1e-13.
"""


def gaussian_noise(key: jax.Array, images: jax.Array, deviation: jax.Array) -> jax.Array:
    """Add normal noise to images."""
    return images + deviation * jax.random.normal(key, images.shape[1:])


def shot_noise(key: jax.Array, images: jax.Array, photons: jax.Array) -> jax.Array:
    """Replace each value x by a Poisson number of mean `photons` · x, divided by `photons`.

    The number is the quantile of a uniform draw, so that it rises with x.
    """
    drawn, rate = jax.random.uniform(key, images.shape[1:]), images * photons
    none = jnp.exp(-rate)

    def count(k: int, sums: tuple[jax.Array, jax.Array, jax.Array]):
        number, chance, below = sums
        chance = chance * rate / (k + 1)
        return number + (drawn > below), chance, below + chance

    number, *_ = jax.lax.fori_loop(0, PHOTONS, count, (jnp.zeros_like(images), none, none))
    return number / photons


def impulse_noise(key: jax.Array, images: jax.Array, share: jax.Array) -> jax.Array:
    """Set a random `share` of the values to 0 or 1, as many to each."""
    drawn = jax.random.uniform(key, images.shape[1:])
    return jnp.where(drawn < share / 2, 0.0, jnp.where(drawn > 1 - share / 2, 1.0, images))


def defocus_blur(key: jax.Array, images: jax.Array, radius: jax.Array) -> jax.Array:
    """Average images over a disk with a soft edge; edge pixels continue outside."""
    axis = jnp.arange(-DISK, DISK + 1)
    kernel = jnp.clip(radius + 0.5 - jnp.hypot(axis[:, None], axis), 0, 1)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 1, *images.shape[1:3])
    planes = jnp.pad(planes, ((0, 0), (0, 0), (DISK, DISK), (DISK, DISK)), mode="edge")
    blurred = jax.lax.conv(planes, (kernel / kernel.sum())[None, None], (1, 1), "VALID")
    b, h, w, c = images.shape
    return blurred.reshape(b, c, h, w).transpose(0, 2, 3, 1)


def motion_blur(
    key: jax.Array, images: jax.Array, length: jax.Array, deviation: jax.Array
) -> jax.Array:
    """Average images along a line from each pixel, at a random angle of at most 45°.

    Weights are those of a normal distribution over the distance, up to twice `length`.
    """
    angle = jax.random.uniform(key, minval=-math.pi / 4, maxval=math.pi / 4)
    steps = jnp.arange(LINE, dtype=jnp.float32)
    weights = jnp.where(steps <= 2 * length, jnp.exp(-(steps**2) / (2 * deviation**2)), 0)
    weights, (h, w) = weights / weights.sum(), images.shape[1:3]

    def add(i: int, total: jax.Array) -> jax.Array:
        rows = jnp.clip(jnp.arange(h) + jnp.round(i * jnp.sin(angle)).astype(int), 0, h - 1)
        columns = jnp.clip(jnp.arange(w) + jnp.round(i * jnp.cos(angle)).astype(int), 0, w - 1)
        return total + weights[i] * images[:, rows[:, None], columns]

    return jax.lax.fori_loop(0, LINE, add, jnp.zeros_like(images))


def fog(key: jax.Array, images: jax.Array, density: jax.Array, decay: jax.Array) -> jax.Array:
    """Add smooth noise from 0 to `density`, and keep the largest value of each image.

    The noise is a sum of random grids with 2^j + 1 places a side, weighted by 1/`decay`^j.
    """
    h, w = images.shape[1:3]
    noise = jnp.zeros((h, w))
    for j in range(1, max(h, w).bit_length()):
        grid = jax.random.uniform(jax.random.fold_in(key, j), (2**j + 1, 2**j + 1))
        noise += jax.image.resize(grid, (h, w), "bilinear") / decay**j
    noise = (noise - noise.min()) / jnp.maximum(noise.max() - noise.min(), 1e-6)
    top = images.max((1, 2, 3), keepdims=True)
    return (images + density * noise[..., None]) * top / (top + density)


def brightness(key: jax.Array, images: jax.Array, more: jax.Array) -> jax.Array:
    """Raise the value of each pixel (V of HSV) by `more`, at most to 1."""
    value = images.max(-1, keepdims=True)
    raised = jnp.minimum(value + more, 1)
    return jnp.where(value > 0, images * raised / jnp.maximum(value, 1e-6), raised)


def contrast(key: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the distance of values from the mean of their channel by a factor."""
    means = images.mean((1, 2), keepdims=True)
    return (images - means) * factor + means


def saturate(key: jax.Array, images: jax.Array, factor: jax.Array, more: jax.Array) -> jax.Array:
    """Change the saturation s of each pixel (S of HSV) to s · `factor` + `more`, within [0, 1].

    Grey pixels stay grey.
    """
    value = images.max(-1, keepdims=True)
    below = value - images
    before = below.max(-1, keepdims=True) / jnp.maximum(value, 1e-6)
    after = jnp.clip(before * factor + more, 0, 1)
    return value - below * after / jnp.maximum(before, 1e-6)


def pixelate(key: jax.Array, images: jax.Array, share: jax.Array) -> jax.Array:
    """Average images over the boxes of a grid with `share` of the pixels along each side."""

    def boxes(size: int) -> jax.Array:
        """Return the weights [size, size] of the pixels of a side in the average for each one."""
        count = jnp.maximum(jnp.floor(size * share + 1e-4), 1).astype(int)
        centres = (2 * jnp.arange(size) + 1) * count  # in boxes, times 2 · size
        own = (centres // (2 * size))[:, None] == (centres - 1) // (2 * size)
        return own / own.sum(1, keepdims=True)

    h, w = images.shape[1:3]
    return jnp.einsum("yh,xw,bhwc->byxc", boxes(h), boxes(w), images)


LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99"""
CHROMINANCE = "17 18 24 47 18 21 26 66 24 26 56 99 47 66 99 99"
"""The example tables of the JPEG standard (ITU-T T.81, annex K); of colours the first 4×4 places.

All other places of the table of colours are 99.
"""
COLOURS = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
"""The matrix from RGB to luminance and two colour differences in JPEG files."""


def _tables(channels: int) -> np.ndarray:
    """Return the steps [8, 8, C] of JPEG's quantisation at quality 50."""
    first = np.array(LUMINANCE.split(), float).reshape(8, 8)
    second = np.full((8, 8), 99.0)
    second[:4, :4] = np.array(CHROMINANCE.split(), float).reshape(4, 4)
    return np.stack([first, second, second][:channels], -1)


def jpeg(key: jax.Array, images: jax.Array, quality: jax.Array) -> jax.Array:
    """Quantise the discrete cosine transform of blocks of 8×8 pixels, as JPEG does.

    Edge pixels continue where blocks end outside. `quality` is under 50.
    """
    b, h, w, c = images.shape
    mixing = COLOURS if c == 3 else np.eye(c)
    steps = jnp.clip(jnp.floor((_tables(c) * 5000 / quality + 50) / 100), 1, 255)[:, None]
    cosines = dct_matrix(8)
    levels = jnp.einsum("bhwc,dc->bhwd", 255 * images, mixing) - jnp.array([128, 0, 0][:c])
    levels = jnp.pad(levels, ((0, 0), (0, -h % 8), (0, -w % 8), (0, 0)), mode="edge")
    blocks = levels.reshape(b, -(-h // 8), 8, -(-w // 8), 8, c)
    found = jnp.einsum("ui,bhiwjc,vj->bhuwvc", cosines, blocks, cosines)
    kept = jnp.round(found / steps) * steps
    levels = jnp.einsum("ui,bhuwvc,vj->bhiwjc", cosines, kept, cosines)
    levels = levels.reshape(b, h + -h % 8, w + -w % 8, c)[:, :h, :w] + jnp.array([128, 0, 0][:c])
    return jnp.einsum("bhwd,cd->bhwc", levels, np.linalg.inv(mixing)) / 255


CORRUPTIONS: dict[str, tuple[Callable[..., jax.Array], tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (gaussian_noise, ((0.08, 0.12, 0.18, 0.26, 0.38),)),
    "shot_noise": (shot_noise, ((60, 25, 12, 5, 3),)),
    "impulse_noise": (impulse_noise, ((0.03, 0.06, 0.09, 0.17, 0.27),)),
    "defocus_blur": (defocus_blur, ((3, 4, 6, 8, 10),)),
    "motion_blur": (motion_blur, ((10, 15, 15, 15, 20), (3, 5, 8, 12, 15))),
    "fog": (fog, ((1.5, 2, 2.5, 2.5, 3), (2, 2, 1.7, 1.5, 1.4))),
    "brightness": (brightness, ((0.1, 0.2, 0.3, 0.4, 0.5),)),
    "contrast": (contrast, ((0.4, 0.3, 0.2, 0.1, 0.05),)),
    "saturate": (saturate, ((0.3, 0.1, 2, 5, 20), (0, 0, 0, 0.1, 0.2))),
    "pixelate": (pixelate, ((0.6, 0.5, 0.4, 0.3, 0.25),)),
    "jpeg": (jpeg, ((25, 18, 15, 10, 7),)),
}
"""Each corruption's function, and its arguments for the five severities."""
SEVERITIES = range(1, 6)
"""The severities of a corruption."""


@functools.partial(jax.jit, static_argnums=0)
def corrupt(
    name: str, key: jax.Array, images: Float32[Array, "B H W C"], severity: int | jax.Array
) -> Float32[jax.Array, "B H W C"]:
    """Return images in [0, 1], of 1 or 3 channels, with the corruption `name` at a severity 1 to 5.

    The noise depends on `key` and the size of an image alone, not on the severity.
    """
    function, strengths = CORRUPTIONS[name]
    given = [jnp.asarray(values, jnp.float32)[severity - 1] for values in strengths]
    return jnp.clip(function(key, jnp.asarray(images), *given), 0, 1)
