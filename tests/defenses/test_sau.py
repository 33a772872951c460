"""Tests of SAU against check values and an independent computation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.types import Batch, Model, Outputs, Variables
from d3jax.defenses import SAUConfig
from d3jax.defenses.repair.sau import js_divergence, sau_loss, unlearning_terms
from d3jax.training import TrainData


def test_settings_are_the_published_ones():
    config = SAUConfig()
    assert (config.bound, config.rate, config.steps) == (0.2, 0.2, 5)
    assert (config.beta_adversarial, config.beta_shared) == (0.01, 1.0)
    assert (config.lam_clean, config.lam_adversarial, config.lam_shared) == (1, 0, 1)
    optimizer = config.schedule.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("amsgrad", 1e-4, 0.0)
    assert (config.schedule.epochs, config.schedule.batch_size) == (100, 256)
    assert (config.schedule.augment, optimizer.schedule) == ("none", "constant")


def test_the_divergence_has_the_published_check_value():
    found = js_divergence(jnp.array([[0.8, 0.2]]), jnp.array([[0.3, 0.7]]))
    assert float(found[0]) == pytest.approx(0.1325055, abs=1e-6)


@pytest.mark.parametrize(
    "p, wanted", [(0.0, 0.0009995), (0.5, 0.6931452), (0.9, 2.302575), (1.0, 13.8155)]
)
def test_unlearning_terms_have_the_published_check_values(p, wanted):
    found = unlearning_terms(jnp.array([[1 - p, p]]), jnp.array([1]))
    assert float(found[0]) == pytest.approx(wanted, rel=1e-4)


def test_a_class_that_is_unlikely_already_has_no_gradient():
    def value(p):
        return unlearning_terms(jnp.stack([1 - p, p])[None], jnp.array([1]))[0]

    assert jax.grad(value)(jnp.float32(0.0005)) == 0 < jax.grad(value)(jnp.float32(0.3))


HEADS = [np.random.default_rng(seed).normal(size=(6, 4)) for seed in (0, 1)]


def linear(params):
    return Variables({"head": jnp.asarray(params, jnp.float32)}, {"mean": jnp.float32(7)})


def model():
    def apply(variables, images, *, train, edit=None):
        assert not train
        return Outputs(images @ variables.params["head"], {}, variables.batch_stats)

    return Model(lambda key: linear(HEADS[0]), apply)


def softmax(logits):
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def independent(images, labels, config):
    """Return SAU's loss and perturbation by the formulas, with gradients of linear models."""
    own, copy = HEADS
    size, change = len(labels), np.full_like(images, config.bound)
    hot, rows = np.eye(4)[labels], np.arange(len(labels))
    clean = [(images @ head).argmax(1) for head in HEADS]
    for _ in range(config.steps):
        p, q = (softmax((images + change) @ head) for head in HEADS)
        found = [p.argmax(1), q.argmax(1)]
        fooled = [a != b for a, b in zip(found, clean, strict=True)]
        shared = fooled[0] & fooled[1] & (found[0] == found[1])
        middle = (p + q) / 2
        slope = np.zeros_like(images)
        for probabilities, head, done in ((p, own, fooled[0]), (q, copy, fooled[1])):
            ce = (probabilities - hot) @ head.T
            slope -= config.beta_adversarial * np.where(done[:, None], 0, ce) / (2 * size)
            by_p = (np.log(probabilities) - np.log(middle)) / 2
            inner = (by_p * probabilities).sum(1, keepdims=True)
            js = (probabilities * (by_p - inner)) @ head.T
            slope += config.beta_shared * np.where(shared[:, None], 0, js) / size
        change = np.clip(change - config.rate * np.sign(slope), -config.bound, config.bound)
    probabilities = softmax((images + change) @ own)
    wrong = ((images + change) @ copy).argmax(1)
    chosen = (wrong != labels) & (wrong != clean[1])
    p = probabilities[rows, wrong]
    terms = -(np.log(1e-6 + np.minimum(1 - p, 0.999)) + np.log(1 + 1e-6 - np.maximum(p, 0.001))) / 2
    ce = -np.log(softmax(images @ own)[rows, labels]).mean()
    adversarial = -np.log(probabilities[rows, labels]).mean()
    lams = (config.lam_clean, config.lam_adversarial, config.lam_shared)
    parts = (ce, adversarial, (terms * chosen).sum() / size)
    return sum(lam * part for lam, part in zip(lams, parts, strict=True)), chosen.sum()


@pytest.mark.parametrize("lam_adversarial", [0.0, 0.7])
def test_the_loss_is_that_of_float64(lam_adversarial):
    draws = np.random.default_rng(3)
    images, labels = draws.random((12, 6)), draws.integers(0, 4, 12)
    config = SAUConfig(bound=0.5, rate=0.2, lam_adversarial=lam_adversarial)
    wanted, chosen = independent(images, labels, config)
    assert chosen > 2
    batch = Batch(jnp.asarray(images, jnp.float32), jnp.asarray(labels), None)
    inputs = {"clean": 1.0, "adversarial": lam_adversarial, "shared": 1.0, "copy": linear(HEADS[1])}
    data = TrainData(None, None, {}, None, inputs)
    own = linear(HEADS[0])
    value, (stats, _) = sau_loss(model(), config)(
        own.params, own.batch_stats, batch, jax.random.key(0), data
    )
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    assert stats == own.batch_stats  # running statistics never change


def test_the_gradient_does_not_reach_the_perturbation():
    """Finite differences with the perturbation held fixed agree where the argmax stays."""
    draws = np.random.default_rng(5)
    images, labels = draws.random((12, 6)), draws.integers(0, 4, 12)
    config = SAUConfig(bound=0.5, lam_shared=0.0, lam_adversarial=0.0)
    batch = Batch(jnp.asarray(images, jnp.float32), jnp.asarray(labels), None)
    inputs = {"clean": 1.0, "adversarial": 0.0, "shared": 0.0, "copy": linear(HEADS[1])}
    data = TrainData(None, None, {}, None, inputs)
    own = linear(HEADS[0])
    slope = jax.grad(
        lambda params: sau_loss(model(), config)(params, {}, batch, jax.random.key(0), data)[0]
    )(own.params)["head"]
    probabilities = softmax(images @ HEADS[0])
    wanted = images.T @ (probabilities - np.eye(4)[labels]) / 12
    np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-6)
