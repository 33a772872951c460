"""Tests of PSNR, SSIM and the largest change against closed forms and an independent SSIM."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from d3jax.metrics.image_similarity import largest, likeness, psnr, ssim


def test_similarities_match_their_closed_forms():
    a = jnp.zeros((2, 16, 16, 3))
    b = a.at[0].set(0.1)
    np.testing.assert_allclose(psnr(a, b), [20.0, jnp.inf], rtol=1e-5)
    np.testing.assert_allclose(largest(a, b), [0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(
        ssim(a, b), [0.01**2 / (0.01 + 0.01**2), 1.0], rtol=1e-4
    )  # means 0 and 0.1, no variance
    found = likeness(a, b)
    assert found["psnr"] == pytest.approx(10 * np.log10(2 / 0.01), rel=1e-5) and found[
        "largest"
    ] == pytest.approx(12.75, rel=1e-5)


def test_ssim_matches_wangs_definition():
    """The window is a Gaussian of 11 pixels with deviation 1.5, and lies inside the image.

    Variances are biased, as in scikit-image.
    """
    a, b = np.random.default_rng(0).random((2, 20, 24))

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    ma, mb = blur(a), blur(b)
    va, vb, cab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 1e-4, 9e-4
    wanted = ((2 * ma * mb + c1) * (2 * cab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()
    pair = [jnp.asarray(x, jnp.float32)[None, :, :, None] for x in (a, b)]
    np.testing.assert_allclose(ssim(*pair), [wanted], rtol=1e-4)


def test_ssim_takes_a_small_image_as_one_window():
    a = jnp.asarray(np.random.default_rng(0).random((1, 8, 8, 1)), jnp.float32)
    assert ssim(a, a)[0] == pytest.approx(1, abs=1e-5) and ssim(a, 1 - a)[0] < 0
