"""Tests of BaDExpert: its check values, its two models and its score against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.config.recipes import OptimConfig
from d3jax.core.images import as_float
from d3jax.core.types import Variables
from d3jax.defenses import badexpert
from d3jax.defenses.input_detection.badexpert import cleanness
from d3jax.models import ViTConfig
from d3jax.training.loop import Hooks


@pytest.mark.parametrize(
    ("expert", "partner", "wanted"),
    [(0.1, 0.95, 19), (0.98, 0.05, 0.0444), (0.0, 0.5, 1e8), (0.4, 0.1, 0.5), (1.0, 0.9, 0.0)],
)
def test_cleanness_has_the_published_check_values(expert, partner, wanted):
    found = cleanness(jnp.float32(expert), jnp.float32(partner))
    assert float(found) == pytest.approx(wanted, rel=2e-3, abs=1e-6)


def test_settings_are_the_published_ones():
    config = badexpert()
    assert (config.expert.epochs, config.expert.batch_size, config.fpr) == (1, 128, 0.01)
    assert (config.expert.optimizer.name, config.expert.optimizer.lr) == ("adam", 1e-4)
    assert (config.partner.epochs, config.partner.batch_size) == (10, 64)
    assert config.partner.optimizer == OptimConfig(
        lr=0.1, nesterov=True, weight_decay=1e-4, schedule="fifths"
    )


@pytest.fixture(scope="module")
def detector(fixture):
    """Return a detector with enough steps for the fixture's 100 reserved images."""
    expert = dataclasses.replace(
        badexpert().expert, steps=30, batch_size=50, optimizer=OptimConfig(name="adam", lr=1e-2)
    )
    partner = dataclasses.replace(badexpert().partner, steps=30, batch_size=50)
    return badexpert(expert=expert, partner=partner, fpr=0.1).build(fixture.dataset.info)


@pytest.fixture(scope="module")
def state(fixture, detector):
    given = (fixture.model, fixture.variables, fixture.reserved)
    return detector.prepare(jax.random.key(0), *given)


def probabilities(fixture, variables, images):
    outputs = fixture.model.apply(variables, as_float(jnp.asarray(images)), train=False)
    odds = np.exp(np.asarray(outputs.logits, np.float64))
    return odds / odds.sum(1, keepdims=True)


def test_the_expert_learns_the_next_class_and_the_partner_the_true_one(fixture, state):
    images, labels = fixture.reserved
    for name, wanted in (("expert", (labels + 1) % 4), ("partner", labels)):
        odds = probabilities(fixture, Variables(**state[name]), images)
        assert np.mean(odds.argmax(1) == wanted) > 0.9, name


def test_the_score_is_that_of_the_formula(fixture, detector, state):
    images = np.asarray(fixture.dataset.test.images[:30])
    model, expert, partner = (
        probabilities(fixture, variables, images)
        for variables in (
            fixture.variables,
            *(Variables(**state[name]) for name in ("expert", "partner")),
        )
    )
    rows, label = np.arange(30), model.argmax(1)
    x, y = expert[rows, label], partner[rows, label]
    wanted = -np.minimum(2 * y / np.maximum(x, 1e-8), (1 - x) / np.maximum(0.5 - y, 1e-8))
    scores = detector.score(fixture.model, fixture.variables, state, images)
    np.testing.assert_allclose(scores, wanted, rtol=2e-3)


def test_the_threshold_rejects_the_share_of_the_reserved_images(fixture, detector, state):
    images = fixture.reserved.images
    scores = np.asarray(detector.score(fixture.model, fixture.variables, state, images))
    assert np.mean(scores > detector.threshold(state)) == pytest.approx(0.1)


def test_expert_and_partner_have_checkpoints_of_their_own(fixture, detector):
    parts = []

    def part(name, watch_every):
        parts.append(name)
        return Hooks()

    given = (fixture.model, fixture.variables, fixture.reserved)
    detector.prepare(jax.random.key(0), *given, Hooks(part=part))
    assert parts == ["expert", "partner"]


def test_badexpert_finds_the_triggered_inputs_of_the_fixture(fixture, detector, state):
    """The state is that of the other tests, to save a training."""
    known = detector._replace(prepare=lambda *given: state)
    found = testing.check_input_detector(known, fixture, auroc=0.8)
    assert np.isfinite(found.scores).all()


def test_a_state_from_a_file_works_for_a_net_without_batch_norm(fixture, detector):
    model = ViTConfig(depth=1, width=8, heads=2, patch=4, resize=0).build(fixture.dataset.info)
    variables = model.init(jax.random.key(0))
    state = {"expert": {"params": variables.params}, "partner": {"params": variables.params}}
    found = detector.score(model, variables, state, fixture.dataset.test.images[:3])
    assert np.isfinite(np.asarray(found)).all()
