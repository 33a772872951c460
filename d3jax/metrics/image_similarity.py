"""Similarity of triggered images to their clean ones: PSNR, SSIM and the largest difference.

Images are [B, H, W, C] in [0, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from ..core.types import Array

WINDOW, SIGMA = 11, 1.5
"""Size and standard deviation of SSIM's Gaussian window, in pixels.

An image smaller than that is one window.
"""


def psnr(
    images: Float32[jax.Array, "B H W C"], others: Float32[jax.Array, "B H W C"]
) -> Float32[jax.Array, " B"]:
    """Return the peak signal-to-noise ratio [B] of image pairs in dB, infinite for equal images."""
    return _decibels(((images - others) ** 2).mean((1, 2, 3)))


def _decibels(error: jax.Array) -> jax.Array:
    return -10 * jnp.log10(error)


def ssim(
    images: Float32[jax.Array, "B H W C"], others: Float32[jax.Array, "B H W C"]
) -> Float32[jax.Array, " B"]:
    """Return the structural similarity (SSIM) [B] of image pairs.

    Wang, Bovik, Sheikh and Simoncelli 2004. It is the mean over channels and over whole windows.
    """
    windows = [jnp.asarray(_windows(side)) for side in images.shape[1:3]]

    def blur(x):
        return jnp.einsum("ih,jw,bhwc->bijc", *windows, x, precision="highest")

    mean, other_mean = blur(images), blur(others)
    var, other_var = blur(images**2) - mean**2, blur(others**2) - other_mean**2
    covariance = blur(images * others) - mean * other_mean
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean * other_mean + c1) * (2 * covariance + c2)
    return (similar / ((mean**2 + other_mean**2 + c1) * (var + other_var + c2))).mean((1, 2, 3))


def largest(
    images: Float32[jax.Array, "B H W C"], others: Float32[jax.Array, "B H W C"]
) -> Float32[jax.Array, " B"]:
    """Return the largest absolute difference [B] of image pairs, over pixels and channels (ℓ∞)."""
    return jnp.abs(images - others).max((1, 2, 3))


def likeness(
    images: Float32[Array, "B H W C"], others: Float32[Array, "B H W C"]
) -> dict[str, float]:
    """Return a dict of PSNR, SSIM and largest difference of paired images, averaged over the pairs.

    `psnr` in dB is that of the mean squared error over all images, so that it stays finite where
    some images are unchanged. `largest` is in 8-bit levels.
    """
    return {name: float(value) for name, value in _likeness(images, others).items()}


@jax.jit
def _likeness(images: jax.Array, others: jax.Array) -> dict[str, jax.Array]:
    return {
        "psnr": _decibels(((images - others) ** 2).mean()),
        "ssim": ssim(images, others).mean(),
        "largest": 255 * largest(images, others).mean(),
    }


def _windows(side: int) -> Float32[np.ndarray, "windows side"]:
    """Return SSIM's matrix that averages a line of `side` pixels over each whole Gaussian window.

    Its shape is [side − window + 1, side].
    """
    window = min(WINDOW, side)
    weights = np.exp(-((np.arange(window) - (window - 1) / 2) ** 2) / (2 * SIGMA**2))
    rows = np.zeros((side - window + 1, side), np.float32)
    for i in range(len(rows)):
        rows[i, i : i + window] = weights / weights.sum()
    return rows
