"""Tests of TeCo: its score for known severities, against NumPy, and the fixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.core.errors import ConfigError
from d3jax.core.random import stream
from d3jax.core.types import DataInfo, Model, Outputs, Split, Variables
from d3jax.data.corruptions import CORRUPTIONS, corrupt
from d3jax.defenses import teco

INFO = DataInfo("two", (8, 8, 1), tuple("ab"), (0.5,), (0.25,))
NONE, KEY = Variables({}, {}), jax.random.key(0)


def apply(variables, images, *, train):
    """Predict class 1 for a mean pixel of 0.55 or more."""
    means = images.mean((1, 2, 3))
    return Outputs(jnp.stack([0.55 - means, means - 0.55], 1), {}, {})


MEAN = Model(lambda key: NONE, apply)


def split(images):
    return Split(images, np.zeros(len(images), np.int32))


@pytest.mark.parametrize(("level", "first"), [(64, 3), (26, 5), (10, 6), (115, 1)])
def test_the_score_is_the_deviation_of_the_first_changing_severity(level, first):
    """Contrast never changes an even image, and brightness adds a tenth per severity."""
    images = np.full((2, 8, 8, 1), level, np.uint8)
    detector = teco(corruptions=("brightness", "contrast")).build(INFO)
    state = detector.prepare(KEY, MEAN, NONE, split(images))
    scores = detector.score(MEAN, NONE, state, images)
    np.testing.assert_allclose(scores, np.std([first, 6]), atol=1e-6)
    assert detector.threshold(state) == pytest.approx(np.std([first, 6]))


def test_the_score_is_that_of_the_formula(rng):
    names = ("impulse_noise", "shot_noise", "brightness", "fog", "gaussian_noise")
    images = (255 * rng.random((40, 8, 8, 1)) * rng.random((40, 1, 1, 1))).astype(np.uint8)
    detector = teco(corruptions=names, fpr=0.25).build(INFO)
    state = detector.prepare(KEY, MEAN, NONE, split(images))
    key = jax.random.wrap_key_data(state["key"])

    def label(image):
        return np.float32(image).mean() >= 0.55

    wanted = []
    for image in images.astype(np.float32) / 255:
        firsts = []
        for name in names:
            copies = [corrupt(name, stream(key, name), image[None], s) for s in range(1, 6)]
            changed = [label(one) != label(image) for one in copies]
            firsts.append(changed.index(True) + 1 if any(changed) else 6)
        wanted.append(np.std(firsts))
    scores = detector.score(MEAN, NONE, state, images)
    assert len(np.unique(wanted)) > 3
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert detector.threshold(state) == pytest.approx(np.quantile(wanted, 0.75), abs=1e-5)


def test_every_corruption_can_be_chosen_and_the_default_has_no_saturation():
    assert set(teco(corruptions=tuple(CORRUPTIONS)).corruptions) == set(CORRUPTIONS)
    assert set(CORRUPTIONS) - set(teco().corruptions) == {"saturate"}


def test_wrong_corruptions_are_refused():
    with pytest.raises(ConfigError, match="corruptions.0: 'snow' is not one of gaussian_noise"):
        teco(corruptions=("snow", "fog"))
    with pytest.raises(ConfigError, match="have no standard deviation, want two or more"):
        teco(corruptions=("fog", "fog"))


def test_teco_keeps_the_contract_on_the_fixture(fixture):
    names = ("gaussian_noise", "brightness", "contrast", "pixelate", "jpeg")
    detector = teco(corruptions=names).build(fixture.dataset.info)
    found = testing.check_input_detector(detector, fixture, auroc=0.5)
    assert len(np.unique(found.scores)) > 5
