"""Detectors against values that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo, Model, Outputs, Split, Variables
from d3jax.defenses import mmbd, strip
from d3jax.defenses.model_detection.mmbd import Margins, judge_margins, margins_of
from d3jax.defenses.sample_detection.activation_clustering import clusters
from d3jax.defenses.sample_detection.spectral import signature

INFO = DataInfo("ten", (4, 4, 1), tuple("abcdefghij"), (0.5,), (0.25,))


def constant(logits):
    """A model that returns these logits for every image."""

    def apply(variables, images, *, train):
        return Outputs(jnp.tile(logits, (len(images), 1)), {}, {})

    return Model(lambda key: Variables({}, {}), apply)


def test_a_signature_is_the_squared_projection_on_the_first_direction():
    features = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])  # centred; the first axis is the top
    np.testing.assert_allclose(signature(features), [9, 9, 0, 0], atol=1e-12)
    moved = features + [10, 0]
    np.testing.assert_allclose(signature(moved), [9, 9, 0, 0], atol=1e-12)
    np.testing.assert_allclose(signature(moved, "uncentred"), [169, 49, 100, 100])


def test_two_clouds_are_two_clusters_and_the_smaller_one_is_near_itself():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 6)) * 0.1
    features[:20, 0] += 5
    smaller, near = clusters(features, 3, seed=0)
    assert smaller.tolist() == [True] * 20 + [False] * 80
    assert near[:20].min() > 0.5 > near[20:].max()


@pytest.mark.parametrize(
    ("logits", "entropy"), [(np.zeros(10), np.log(10)), (30 * np.eye(10)[0], 0.0)]
)
def test_strips_entropies_lie_between_zero_and_ln_k(logits, entropy):
    detector, model = strip(overlays=3, fpr=0.5).build(INFO), constant(jnp.asarray(logits))
    reserved = Split(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32))
    state = detector.prepare(jax.random.key(0), model, Variables({}, {}), reserved)
    scores = detector.score(model, Variables({}, {}), state, reserved.images)
    np.testing.assert_allclose(scores, -entropy, atol=1e-5)
    assert detector.threshold(state) == pytest.approx(-entropy, abs=1e-5)


def test_strip_adds_in_normalised_space():
    """x + α · x_j of normalised images is x + α · (x_j − mean) of pixels."""
    seen = []

    def apply(variables, images, *, train):
        jax.debug.callback(lambda x: seen.append(np.array(x)), images)
        return Outputs(jnp.zeros((len(images), 10)), {}, {})

    detector = strip(overlays=1, alpha=2.0).build(INFO)
    reserved = Split(np.full((1, 4, 4, 1), 255, np.uint8), np.zeros(1, np.int32))
    model = Model(lambda key: Variables({}, {}), apply)
    state = detector.prepare(jax.random.key(0), model, Variables({}, {}), reserved)
    jax.block_until_ready(
        detector.score(model, Variables({}, {}), state, np.zeros((1, 4, 4, 1), np.uint8))
    )
    jax.effects_barrier()
    np.testing.assert_allclose(seen[-1], 2.0 * (1.0 - 0.5))


def test_margins_are_the_wanted_logit_over_the_best_other():
    logits = jnp.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    np.testing.assert_allclose(margins_of(logits, jnp.array([1, 0])), [2.0, -3.0])


def test_an_outlying_margin_is_flagged_and_equal_ones_are_not():
    rng = np.random.default_rng(1)
    margins = rng.gamma(50, 0.1, 10).astype(np.float32)
    quiet = judge_margins(Margins(margins, np.zeros(10)), 0.05)
    assert quiet.target == -1 and 0 <= quiet.facts["p_value"] <= 1
    loud = judge_margins(Margins(np.where(np.arange(10) == 3, 30.0, margins), np.zeros(10)), 0.05)
    assert loud.target == 3 and loud.statistic > loud.threshold
    for odd in (np.ones(10), -margins):
        assert judge_margins(Margins(odd, np.zeros(10)), 0.05).facts["p_value"] == 1


def test_margins_of_a_linear_model_reach_the_corner_of_the_cube():
    """A linear margin is largest in a corner of [0, 1]: its value is known."""
    info = DataInfo("four", (1, 1, 2), tuple("abcd"), (0.5,) * 2, (0.25,) * 2)
    weights = jnp.array([[5.0, 0.0], [0.0, 3.0], [-1.0, -1.0], [0.0, 0.0]])

    def apply(variables, images, *, train):
        return Outputs(images.reshape(len(images), 2) @ weights.T, {}, {})

    detector = mmbd(images=4, steps=400, lr=0.05, tolerance=0).build(info)
    model = Model(lambda key: Variables({}, {}), apply)
    found, records = detector.detect(jax.random.key(0), model, Variables({}, {}))
    # Class 0 at (1, 0): 5 − 0; class 1 at (0, 1): 3 − 0; 2 at (0, 0): 0; 3 at (0, 0): 0.
    np.testing.assert_allclose(found.margins, [5, 3, 0, 0], atol=1e-5)
    assert records[-1]["step"] == 400


def test_three_classes_are_too_few_for_a_distribution():
    with pytest.raises(ConfigError, match="3 classes are too few, want 4"):
        mmbd().build(DataInfo("three", (4, 4, 1), tuple("abc"), (0.5,), (0.25,)))
