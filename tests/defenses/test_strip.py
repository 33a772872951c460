"""Tests of STRIP: bounds of its entropy, overlays in normalised space, and the fixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.core.types import DataInfo, Model, Outputs, Split, Variables
from d3jax.defenses import strip

INFO = DataInfo("ten", (4, 4, 1), tuple("abcdefghij"), (0.5,), (0.25,))


def constant(logits):
    """Return a model that outputs these logits for every image."""

    def apply(variables, images, *, train):
        return Outputs(jnp.tile(logits, (len(images), 1)), {}, {})

    return Model(lambda key: Variables({}, {}), apply)


@pytest.mark.parametrize(
    ("logits", "entropy"), [(np.zeros(10), np.log(10)), (30 * np.eye(10)[0], 0.0)]
)
def test_entropy_is_ln_k_for_uniform_logits_and_0_for_certain_ones(logits, entropy):
    detector, model = strip(overlays=3, fpr=0.5).build(INFO), constant(jnp.asarray(logits))
    reserved = Split(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32))
    state = detector.prepare(jax.random.key(0), model, Variables({}, {}), reserved)
    scores = detector.score(model, Variables({}, {}), state, reserved.images)
    np.testing.assert_allclose(scores, -entropy, atol=1e-5)
    assert detector.threshold(state) == pytest.approx(-entropy, abs=1e-5)


def test_strip_adds_overlays_in_normalised_space():
    """In pixels, x + α · x_j of normalised images is x + α · (x_j − mean)."""
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


def test_triggered_inputs_score_higher_and_too_many_overlays_are_refused(fixture):
    detector = strip(overlays=20).build(fixture.dataset.info)
    testing.check_input_detector(detector, fixture, auroc=0.7)
    testing.check_refuses(
        strip(overlays=500).build(fixture.dataset.info).check, fixture.model, None, 100,
        words="overlays: 500 are more than",
    )  # fmt: skip
