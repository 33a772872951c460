"""Tests of the corruptions of images, against NumPy, Pillow and colorsys."""

import colorsys
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

KEY = jax.random.key(3)
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog")


@pytest.fixture
def images(rng):
    """Return smooth images [3, 20, 16, 3] in [0, 1], with values of 8-bit levels."""
    small = rng.random((3, 5, 4, 3))
    smooth = jax.image.resize(jnp.asarray(small, jnp.float32), (3, 20, 16, 3), "bilinear")
    return np.round(np.asarray(smooth) * 255).astype(np.float32) / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_with_severity_and_treat_each_image_alone(name, images):
    made = [np.asarray(corrupt(name, KEY, images, severity)) for severity in SEVERITIES]
    for one in made:
        assert one.shape == images.shape and one.dtype == np.float32
        assert 0 <= one.min() and one.max() <= 1
    moved = [np.abs(one - images).mean() for one in made]
    assert 0 < moved[0] and (moved[0] < moved[-1] or name == "saturate")
    alone = corrupt(name, KEY, images[1:2], 3)
    np.testing.assert_allclose(alone[0], made[2][1], atol=1e-5)
    grey = np.asarray(corrupt(name, KEY, images[..., :1], 5))
    assert grey.shape == (3, 20, 16, 1) and np.isfinite(grey).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_only_random_corruptions_depend_on_the_key(name, images):
    one, other = (np.asarray(corrupt(name, jax.random.key(seed), images, 2)) for seed in (0, 1))
    assert np.array_equal(one, other) == (name not in RANDOM)
    again = corrupt(name, jax.random.key(0), images, 2)
    np.testing.assert_array_equal(one, again)


def test_noise_has_the_moments_of_its_distribution():
    images = np.full((1, 100, 100, 3), 0.5, np.float32)
    normal = np.asarray(corrupt("gaussian_noise", KEY, images, 1)) - 0.5
    assert normal.std() == pytest.approx(0.08, rel=0.03) and abs(normal.mean()) < 0.003
    shot = np.asarray(corrupt("shot_noise", KEY, images, 1)) * 60
    np.testing.assert_allclose(shot, np.round(shot), atol=1e-3)  # whole photons
    assert shot.mean() == pytest.approx(30, rel=0.02)  # and shot.var() of a Poisson distribution:
    assert shot.var() == pytest.approx(30, rel=0.05)
    impulse = np.asarray(corrupt("impulse_noise", KEY, images, 5))
    for level in (0, 1):
        assert np.mean(impulse == level) == pytest.approx(0.135, abs=0.01)
    assert np.mean(impulse == 0.5) == pytest.approx(0.73, abs=0.01)


def test_contrast_keeps_the_mean_of_each_channel(images):
    found = corrupt("contrast", KEY, images, 3)
    means = images.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(found, means + 0.2 * (images - means), atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_are_those_of_hsv(images, severity):
    bright = np.asarray(corrupt("brightness", KEY, images, severity))[0]
    strong = np.asarray(corrupt("saturate", KEY, images, severity))[0]
    (factor, more) = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    for row, column in np.ndindex(20, 16):
        h, s, v = colorsys.rgb_to_hsv(*images[0, row, column].tolist())
        wanted = colorsys.hsv_to_rgb(h, s, min(1, v + severity / 10))
        np.testing.assert_allclose(bright[row, column], wanted, atol=1e-4)
        wanted = colorsys.hsv_to_rgb(h, min(1, s * factor + more), v)
        np.testing.assert_allclose(strong[row, column], wanted, atol=1e-4)


def test_black_pixels_become_grey_by_brightness_and_grey_ones_keep_their_colour():
    black = np.zeros((1, 2, 2, 3), np.float32)
    np.testing.assert_allclose(corrupt("brightness", KEY, black, 2), 0.2)
    np.testing.assert_allclose(corrupt("saturate", KEY, black + 0.5, 5), 0.5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_the_box_filter_of_pillow(images, severity):
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    found = np.asarray(corrupt("pixelate", KEY, images, severity))[0, ..., 0]
    picture = Image.fromarray(images[0, ..., 0])
    small = picture.resize((int(16 * share), int(20 * share)), Image.Resampling.BOX)
    wanted = np.asarray(small.resize((16, 20), Image.Resampling.BOX))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow_without_subsampling(images, severity, channels):
    levels = np.round(images[0] * 255).astype(np.uint8)
    levels = levels if channels == 3 else levels[..., 0]
    file = io.BytesIO()
    quality = (25, 18, 15, 10, 7)[severity - 1]
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling=0)
    wanted = np.asarray(Image.open(file)).reshape(20, 16, channels) / 255
    found = np.asarray(corrupt("jpeg", KEY, images[:1, ..., :channels], severity))[0]
    assert np.abs(wanted - images[0, ..., :channels]).mean() > 0.01
    # A level is 0.0039. Pillow rounds the colours to levels before the transform.
    assert np.median(np.abs(found - wanted)) < 0.0035 and np.abs(found - wanted).mean() < 0.006


def test_defocus_spreads_a_point_over_a_disk_and_keeps_its_light():
    point = np.zeros((1, 41, 41, 1), np.float32)
    point[0, 20, 20] = 1
    found = np.asarray(corrupt("defocus_blur", KEY, point, 2))[0, ..., 0]
    y, x = np.mgrid[-20:21, -20:21]
    wanted = np.clip(4.5 - np.hypot(y, x), 0, 1)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-6)


def test_motion_spreads_a_point_along_a_line_within_45_degrees():
    point = np.zeros((1, 81, 81, 1), np.float32)
    point[0, 40, 70] = 1
    found = np.asarray(corrupt("motion_blur", KEY, point, 1))[0, ..., 0]
    rows, columns = np.nonzero(found > 1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert columns.max() == 70 and 50 <= columns.min() < 60  # 20 steps, of light over 3σ
    assert (np.abs(rows - 40) <= 70 - columns + 1).all()
    assert found[40, 70] == found.max()


def test_fog_is_smooth_and_keeps_the_largest_value():
    """Of an even image of 0.5, severity 1 makes (0.5 + 1.5 n) · 0.5 / 2, with noise n in [0, 1]."""
    even = np.full((1, 32, 32, 1), 0.5, np.float32)
    found = np.asarray(corrupt("fog", KEY, even, 1))[0, ..., 0]
    assert (found.min(), found.max()) == pytest.approx((0.125, 0.5), abs=1e-5)
    assert np.abs(np.diff(found, axis=0)).mean() < 0.5 * found.std()  # of white noise 1.13
    np.testing.assert_allclose(corrupt("fog", KEY, 0 * even, 5), 0, atol=1e-6)
