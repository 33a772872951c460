"""Tests of SCALE-UP: its consistency against NumPy, its two thresholds, and the fixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo, Model, Outputs, Split, Variables
from d3jax.defenses import scale_up
from d3jax.defenses.input_detection.scale_up import class_statistics

INFO = DataInfo("three", (4, 4, 1), tuple("abc"), (0.5,), (0.25,))
NONE = Variables({}, {})


def steps(images):
    """Return the class of each image by its mean: 0 under 0.3, 1 under 0.6, else 2."""
    means = images.mean((1, 2, 3))
    return (means >= 0.3).astype(int) + (means >= 0.6).astype(int)


def apply(variables, images, *, train):
    return Outputs(jax.nn.one_hot(steps(images), 3), {}, {})


STEPS = Model(lambda key: NONE, apply)
"""A model whose prediction depends on the mean pixel alone."""


def split(images):
    return Split(images, np.zeros(len(images), np.int32))


def wanted_spc(images, scales):
    """Return the predictions and the SPC by NumPy, from the formula."""
    pixels = images.astype(np.float32) / 255
    scaled = np.stack([steps(np.clip(pixels * s, 0, 1)) for s in scales])
    return steps(pixels), (scaled == steps(pixels)).mean(0)


def test_the_score_is_the_share_of_scales_that_keep_the_prediction(rng):
    scales = (0.5, 1.5, 2.0, 3.0, 11.0)
    images = rng.integers(0, 256, (40, 4, 4, 1)) * rng.random((40, 1, 1, 1))
    images = images.astype(np.uint8)
    detector = scale_up(scales=scales).build(INFO)
    state = detector.prepare(jax.random.key(0), STEPS, NONE, split(images))
    scores = detector.score(STEPS, NONE, state, images)
    _, wanted = wanted_spc(images, scales)
    assert len(set(np.round(wanted, 3))) > 3
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    assert detector.threshold(state) == 0.5


@pytest.mark.parametrize("level, kept", [(255, 5), (20, 1), (0, 5)])
def test_black_and_white_images_are_kept_by_every_scale(level, kept):
    """A level of 20 is class 0 at first, also at 3, and brighter at 5 and above."""
    detector = scale_up().build(INFO)
    images = np.full((1, 4, 4, 1), level, np.uint8)
    scores = detector.score(STEPS, NONE, {}, images)
    np.testing.assert_allclose(scores, kept / 5, atol=1e-6)


def test_standardised_scores_are_z_scores_of_the_predicted_class(rng):
    scales = (1.5, 2.0, 3.0)
    images = (255 * rng.random((60, 1, 1, 1)) * np.ones((1, 4, 4, 1))).astype(np.uint8)
    detector = scale_up(scales=scales, standardise=True).build(INFO)
    state = detector.prepare(jax.random.key(0), STEPS, NONE, split(images))
    predicted, spc = wanted_spc(images, scales)
    std = [spc[predicted == k].std() or spc.std() for k in range(3)]
    wanted = [
        (one - spc[predicted == k].mean()) / std[k] for k, one in zip(predicted, spc, strict=True)
    ]
    scores = detector.score(STEPS, NONE, state, images)
    assert np.ptp(wanted) > 1
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_classes_without_images_have_the_statistics_of_all_images():
    found = class_statistics(np.array([0, 0, 2]), np.array([0.0, 1.0, 0.5]), 3)
    whole = np.std([0, 1, 0.5])
    np.testing.assert_allclose(found["mean"], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(found["std"], [0.5, whole, whole], rtol=1e-6)
    constant = class_statistics(np.array([0, 1]), np.array([0.5, 0.5]), 3)
    np.testing.assert_allclose(constant["std"], 1.0)


def test_the_quantile_rule_takes_the_threshold_from_the_reserved_images():
    levels = np.array([255] * 3 + [20] * 7, np.uint8)
    images = np.ones((10, 4, 4, 1), np.uint8) * levels[:, None, None, None]
    detector = scale_up(rule="quantile", fpr=0.5).build(INFO)
    state = detector.prepare(jax.random.key(0), STEPS, NONE, split(images))
    assert detector.threshold(state) == pytest.approx(0.2)


def test_settings_that_the_rule_does_not_read_are_refused():
    with pytest.raises(ConfigError, match="threshold: 0.7 does not apply to rule: quantile"):
        scale_up(rule="quantile", threshold=0.7)
    with pytest.raises(ConfigError, match="fpr: 0.2 does not apply to rule: constant"):
        scale_up(fpr=0.2)
    with pytest.raises(ConfigError, match="scales: is empty"):
        scale_up(scales=())


def test_too_few_images_for_the_statistics_are_refused():
    check = scale_up(standardise=True).build(INFO).check
    testing.check_refuses(check, STEPS, None, 2, words="standardise: 2 reserved images are too few")
    scale_up().build(INFO).check(STEPS, NONE, 2)


@pytest.mark.parametrize("standardise", [False, True])
def test_scale_up_keeps_the_contract_on_the_fixture(fixture, standardise):
    """The patch of the fixture is white, for which the method can fail."""
    detector = scale_up(standardise=standardise).build(fixture.dataset.info)
    found = testing.check_input_detector(detector, fixture)
    assert len(np.unique(jnp.asarray(found.scores))) > 2
