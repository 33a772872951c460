"""Tests of IBD-PSC: amplified layers, the first network, its score against NumPy, the fixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.core.types import DataInfo, Model, NormLayer, Outputs, Split, Variables
from d3jax.defenses import ibd_psc
from d3jax.defenses.input_detection.ibd_psc import amplified, first_count

INFO = DataInfo("three", (2, 2, 1), tuple("abc"), (0.5,), (0.25,))
LAYERS = 7
SCALES = np.float32([1.0, 0.9, 1.1, 1.0, 0.8, 1.2, 1.0])
BIASES = np.float32([0.1, -0.1, 0.2, 0.1, -0.2, 0.1, 0.05])
KEY = jax.random.key(0)


def logits_by_numpy(images, count, factor):
    """Return the logits of the model with its last `count` layers amplified."""
    h = images.astype(np.float64).mean((1, 2, 3)) / 255
    for i in range(LAYERS):
        times = factor if i >= LAYERS - count else 1
        h = h * (SCALES[i] * times) + BIASES[i] * times
    return 0.2 * np.stack([1 - h, 0.5 * h, h**2 - 1], 1)


def apply(variables, images, *, train):
    h = images.mean((1, 2, 3))
    for i in range(LAYERS):
        layer = variables.params[f"norm{i}"]
        h = h * layer["scale"] + layer["bias"]
    return Outputs(0.2 * jnp.stack([1 - h, 0.5 * h, h**2 - 1], 1), {}, {})


def norm(i):
    return NormLayer((f"norm{i}",), (), (), (), "", "")


CHAIN = Model(lambda key: VARIABLES, apply, channels=tuple(map(norm, range(LAYERS))))
VARIABLES = Variables(
    {f"norm{i}": {"scale": SCALES[i], "bias": BIASES[i]} for i in range(LAYERS)}
    | {"head": {"kernel": np.float32(2), "bias": np.float32(3)}},
    {},
)


@pytest.fixture
def reserved(rng):
    images = np.ones((60, 2, 2, 1)) * rng.integers(0, 256, (60, 1, 1, 1))
    images = images.astype(np.uint8)
    return Split(images, logits_by_numpy(images, 0, 1).argmax(1).astype(np.int32))


def errors(reserved, factor):
    """Return the error with 1, 2, … layers amplified."""
    predicted = [logits_by_numpy(reserved.images, k, factor).argmax(1) for k in range(1, LAYERS)]
    return [np.mean(one != reserved.labels) for one in predicted]


def test_only_scale_and_bias_of_the_last_layers_are_multiplied():
    found = amplified(CHAIN, VARIABLES, 2, 1.5).params
    for i in range(LAYERS):
        times = 1.5 if i >= 5 else 1.0
        assert float(found[f"norm{i}"]["scale"]) == pytest.approx(times * SCALES[i])
        assert float(found[f"norm{i}"]["bias"]) == pytest.approx(times * BIASES[i])
    assert found["head"] == VARIABLES.params["head"]
    whole = amplified(CHAIN, VARIABLES, 99, 2.0).params
    assert float(whole["norm0"]["scale"]) == pytest.approx(2 * SCALES[0])


def test_k_is_the_first_number_of_layers_with_too_large_an_error(reserved):
    found = errors(reserved, 1.5)
    least = (found[1] + found[2]) / 2
    assert found[0] < least and found[1] < least < found[2]
    assert first_count(CHAIN, VARIABLES, reserved, 1.5, least) == 3
    assert first_count(CHAIN, VARIABLES, reserved, 1.5, 1.0) == LAYERS - 1  # never that large


def test_the_score_is_the_mean_probability_over_networks_after_k(reserved):
    least = float(np.mean(errors(reserved, 1.5)[1:3]))
    detector = ibd_psc(networks=3, error=least).build(INFO)
    state = detector.prepare(KEY, CHAIN, VARIABLES, reserved)
    assert int(state["count"]) == 3
    scores = detector.score(CHAIN, VARIABLES, state, reserved.images)
    wanted = 0
    for count in (4, 5, 6):
        logits = logits_by_numpy(reserved.images, count, 1.5)
        odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        wanted = wanted + odds[np.arange(60), reserved.labels] / 3
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert detector.threshold(state) == pytest.approx(0.9)


def test_the_quantile_rule_takes_the_threshold_from_the_reserved_images(reserved):
    detector = ibd_psc(rule="quantile", fpr=0.25).build(INFO)
    state = detector.prepare(KEY, CHAIN, VARIABLES, reserved)
    scores = np.asarray(detector.score(CHAIN, VARIABLES, state, reserved.images))
    assert detector.threshold(state) == pytest.approx(np.quantile(scores, 0.75))


def test_a_model_without_batch_norm_layers_is_refused():
    check = ibd_psc().build(INFO).check
    words = "ibd_psc amplifies BatchNorm layers, and this model names none"
    testing.check_refuses(check, CHAIN._replace(channels=()), None, 100, words=words)


def test_ibd_psc_keeps_the_contract_on_the_fixture(fixture):
    """The small net has two layers, and amplification makes all its predictions surer."""
    detector = ibd_psc().build(fixture.dataset.info)
    found = testing.check_input_detector(detector, fixture)
    assert 0.9 < found.scores.mean() <= 1 and found.flagged.mean() > 0.9
