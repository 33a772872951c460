"""Tests of drifts against scipy, colorsys and closed forms.

Strength 0 is the exact identity. Drifts run under jit with traced strengths.
"""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from d3jax.core.errors import ConfigError
from d3jax.data.drift import DRIFTS, compose, label_shift

KEY = jax.random.key(0)


def keys(x):
    return jax.random.split(KEY, len(x))


def images(height=9, width=9, channels=3, count=4):
    return jax.random.uniform(jax.random.key(1), (count, height, width, channels))


def drifted(name, x, strength):
    """Apply a drift under jit with a traced strength, and return a NumPy array."""
    return np.asarray(jax.jit(DRIFTS[name])(keys(x), x, strength))


@pytest.mark.parametrize("name", DRIFTS)
@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 12, 3), (5, 5, 1)])
def test_strength_zero_is_the_exact_identity(name, shape):
    if name == "hue" and shape[2] == 1:
        return
    x = images(*shape)
    np.testing.assert_array_equal(drifted(name, x, 0.0), x)
    for strength in (-0.4, 0.3, 25.0):
        y = drifted(name, x, strength)
        assert (
            y.shape == x.shape
            and y.dtype == np.float32
            and (y >= 0).all()
            and (y <= 1 + 1e-6).all()
        )
        assert not np.array_equal(y, x)


@pytest.mark.parametrize("degrees", [-30.0, 4.0, 45.0, 90.0, 200.0])
@pytest.mark.parametrize("shape", [(9, 9), (10, 10), (8, 13)])
def test_rotation_matches_scipy(degrees, shape):
    x = images(*shape)
    expected = ndimage.rotate(
        np.asarray(x, np.float64),
        degrees,
        axes=(1, 2),
        reshape=False,
        order=1,
        mode="grid-constant",
    )
    np.testing.assert_allclose(drifted("rotation", x, degrees), expected, atol=2e-5)


@pytest.mark.parametrize("turn", [-0.3, 0.05, 0.5, 1.0])
def test_hue_matches_colorsys(turn):
    x = (
        images().at[0, 0].set(0.4).at[0, 1, :, 1].set(0.0).at[0, 2].set(jnp.array([1.0, 0.0, 1.0]))
    )  # grey, no green, magenta
    expected = [
        colorsys.hsv_to_rgb((h + turn) % 1, s, v)
        for h, s, v in (
            colorsys.rgb_to_hsv(*map(float, pixel)) for pixel in np.asarray(x).reshape(-1, 3)
        )
    ]
    np.testing.assert_allclose(drifted("hue", x, turn).reshape(-1, 3), expected, atol=1e-5)


def test_brightness_contrast_and_blur_match_their_formulas():
    x = np.asarray(images(), np.float64)
    np.testing.assert_allclose(
        drifted("brightness", images(), 0.3), np.clip(1.3 * x, 0, 1), atol=1e-6
    )
    mean = x.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(
        drifted("contrast", images(), -0.5), mean + 0.5 * (x - mean), atol=1e-6
    )
    np.testing.assert_allclose(
        drifted("contrast", images(), -1.0), np.broadcast_to(mean, x.shape), atol=1e-6
    )
    middle = ndimage.gaussian_filter(x, (0, 0.8, 0.8, 0), truncate=20)[
        :, 4, 4
    ]  # far enough from the border
    np.testing.assert_allclose(drifted("blur", images(), 0.8)[:, 4, 4], middle, atol=1e-4)
    even = jnp.full((1, 6, 6, 1), 0.7)
    np.testing.assert_allclose(drifted("blur", even, 2.0), even, atol=1e-6)


def test_noise_has_the_standard_deviation_asked_for():
    x = jnp.full((50, 16, 16, 3), 0.5)
    y = drifted("noise", x, 0.1)
    assert y.std() == pytest.approx(0.1, rel=0.02) and y.mean() == pytest.approx(0.5, abs=2e-3)


def test_drifts_compose_in_order():
    x = images()
    both = jax.jit(compose(["brightness", "contrast"], 3))(keys(x), x, jnp.array([0.5, -0.2]))
    np.testing.assert_array_equal(
        both, drifted("contrast", jnp.asarray(drifted("brightness", x, 0.5)), -0.2)
    )
    np.testing.assert_array_equal(compose(["rotation", "noise"], 3)(keys(x), x, jnp.zeros(2)), x)
    even = jnp.full((20, 16, 16, 3), 0.5)
    twice = compose(["noise", "noise"], 3)(keys(even), even, jnp.array([0.1, 0.1]))
    assert float(twice.std()) == pytest.approx(0.1 * np.sqrt(2), rel=0.05)  # two independent noises
    with pytest.raises(ConfigError, match="drift: 'tilt' is not one of rotation, hue"):
        compose(["tilt"], 3)
    with pytest.raises(ConfigError, match="hue needs 3 channels, the images have 1"):
        compose(["hue"], 1)


@pytest.mark.parametrize("strength", [-2.0, 1.0, 4.0])
def test_label_shift_gives_the_class_shares_of_its_strength(strength):
    labels = jnp.arange(1000) % 5
    rows = np.asarray(jax.jit(label_shift, static_argnums=3)(KEY, labels, strength, 5))
    weights = np.exp(strength * (np.arange(5) / 4 - 0.5))
    shares = np.bincount(np.asarray(labels)[rows], minlength=5) / 1000
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.02)
    np.testing.assert_array_equal(label_shift(KEY, labels, 0.0, 5), np.arange(1000))
