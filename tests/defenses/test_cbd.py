"""Tests of CBD: the weights, the loss and its gradient, the rate, and what the result keeps."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax import testing
from d3jax.attacks import badnets
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.random import stream
from d3jax.core.types import Batch, Model, Outputs, Split, Variables
from d3jax.data import synthetic
from d3jax.defenses.training_time.cbd import (
    CBDConfig,
    cbd_loss,
    make_cbd,
    sample_weights,
)
from d3jax.defenses.training_time.suspicion import training_loop, with_drops
from d3jax.metrics.sample_scores import auroc
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.step import classification_loss

from ..helpers.small import small_model

KEY = jax.random.key(7)
RATE = OptimConfig(lr=0.05, schedule="constant")
SHORT = TrainConfig(steps=200, batch_size=64, augment="none", optimizer=RATE)
CBD = CBDConfig(biased=SHORT, train=SHORT)


def test_presets_have_the_authors_numbers():
    config = CBDConfig()
    assert (config.biased.epochs, config.train.epochs, config.drops) == (5, 100, (0.2, 0.7))
    assert config.biased.batch_size == config.train.batch_size == 64
    assert config.train.augment == config.biased.augment == "cutout"
    rate = OptimConfig(lr=0.1, nesterov=True, weight_decay=1e-4, schedule="constant")
    assert config.train.optimizer == config.biased.optimizer == rate
    short = CBDConfig(preset="short")
    assert (short.biased.epochs, short.train.epochs) == (2, 14)
    assert dataclasses.replace(short.train, epochs=100) == config.train


def test_weights_have_their_closed_form_and_the_mean_1():
    found = sample_weights(jnp.array([1.0, 3.0, 0.0]), jnp.array([1.0, 1.0, 2.0]))
    np.testing.assert_allclose(found, [1.2, 1.8, 0.0], rtol=1e-6)  # 0.5, 0.75 and 0, mean 5 / 12
    assert float(found.mean()) == pytest.approx(1)
    np.testing.assert_array_equal(sample_weights(jnp.zeros(2), jnp.ones(2)), [0, 0])


def linear(classes):
    """Return a model whose logits are linear in the pixels, and twice as large in train mode."""

    def init(key):
        return Variables({"w": jax.random.normal(key, (4, classes))}, {"calls": jnp.zeros(())})

    def apply(variables, images, *, train):
        logits = images.reshape(len(images), -1) @ variables.params["w"] * (2.0 if train else 1.0)
        stats = {"calls": variables.batch_stats["calls"] + train}
        return Outputs(logits, {}, stats)

    return Model(init, apply)


def cross_entropy(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def test_the_loss_and_its_gradient_are_those_of_constant_weights(rng):
    model, labels = linear(3), np.array([0, 2, 1, 1, 0], np.int32)
    pixels = rng.random((5, 4)).astype(np.float32)
    own, other = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    batch = Batch(jnp.asarray(pixels.reshape(5, 2, 2, 1)), jnp.asarray(labels), jnp.zeros(5, bool))
    stats = {"calls": jnp.zeros(())}
    data = SimpleNamespace(loss_inputs=Variables({"w": jnp.asarray(other)}, stats))
    slope = jax.value_and_grad(cbd_loss(model), has_aux=True)
    (value, (after, reported)), grads = slope({"w": jnp.asarray(own)}, stats, batch, KEY, data)

    biased = cross_entropy(pixels @ other, labels)  # eval mode
    logits = 2 * pixels @ own  # train mode
    mine = cross_entropy(logits, labels)
    weights = biased / (biased + mine + 1e-8)
    weights *= 5 / weights.sum()
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    wanted = 2 * pixels.T @ ((odds - np.eye(3)[labels]) * weights[:, None]) / 5
    assert float(value) == pytest.approx((weights * mine).mean(), rel=1e-5)
    np.testing.assert_allclose(grads["w"], wanted, rtol=1e-4, atol=1e-6)
    assert float(after["calls"]) == 1  # one pass in train mode: that of f_c
    assert float(reported["accuracy"]) == pytest.approx((logits.argmax(1) == labels).mean())


def test_the_rate_falls_to_a_tenth_at_the_shares_of_the_epochs():
    tx = with_drops(optax.sgd(1.0), (0.2, 0.7), steps=20, steps_per_epoch=2)
    params, factors = {"w": jnp.zeros(())}, []
    state = tx.init(params)
    for _ in range(20):
        moves, state = tx.update({"w": jnp.ones(())}, state, params)
        factors.append(-float(moves["w"]))
    np.testing.assert_allclose(factors, [1] * 4 + [0.1] * 10 + [0.01] * 6, rtol=1e-5)
    assert with_drops(tx, (), steps=20, steps_per_epoch=2) is tx
    first = with_drops(optax.sgd(1.0), (0.1,), steps=4, steps_per_epoch=2)
    moves, _ = first.update({"w": jnp.ones(())}, first.init(params), params)
    assert float(moves["w"]) == -1  # no drop before the second epoch


def test_a_recipe_loop_gives_the_loss_its_inputs(fixture):
    loop = training_loop(
        KEY, fixture.variables, fixture.samples, SHORT, fixture.dataset.info,
        classification_loss(fixture.model), drops=(0.5,), loss_inputs=fixture.variables,
    )  # fmt: skip
    assert loop.steps == 200 and loop.data.loss_inputs is fixture.variables


def test_f_c_begins_with_new_variables(fixture):
    still = dataclasses.replace(SHORT, steps=1, optimizer=dataclasses.replace(RATE, lr=1e-12))
    config = dataclasses.replace(CBD, train=still)
    key, model = jax.random.key(1), fixture.model
    found = make_cbd(config, fixture.dataset.info).train(
        key, model, fixture.samples, fixture.variables
    )
    new = model.init(stream(key, "init"))
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6),
        found.variables.params, new.params,
    )  # fmt: skip
    assert not np.allclose(
        new.params["head"]["kernel"], fixture.variables.params["head"]["kernel"], atol=0.1
    )


@pytest.fixture(scope="module")
def noisy():
    """Return a `Fixture` with more noise and poison than the shared one; its model is untrained."""
    settings = {"size": 12, "channels": 3, "classes": 4, "train": 400, "test": 130, "noise": 0.3}
    dataset = synthetic(**settings).build()
    model, attack = small_model(dataset.info), badnets(rate=0.15).build(dataset.info)
    samples, flags = poisoned_split(KEY, attack, dataset.train)
    trigger, variables = attack.init(KEY), model.init(KEY)
    return testing.Fixture(
        model, dataset, attack, variables, trigger, samples, np.asarray(flags), dataset.test
    )


def test_a_backdoor_that_f_b_has_learned_is_not_learned_again(noisy):
    """f_b is trained on random labels of the clean images, so that it learns the trigger only."""
    info, poisoned = noisy.dataset.info, noisy.poisoned
    labels = np.array(noisy.samples.labels)
    labels[~poisoned] = np.random.default_rng(0).integers(0, 4, (~poisoned).sum())
    shuffled, defense = Split(noisy.samples.images, labels), CBD.build(info)
    knowing = defense._replace(begin=lambda key, model, data: defense.begin(key, model, shuffled))
    found = testing.check_training_defense(knowing, noisy, acc=0.9, asr=0.2)
    weight = found.found["weight"]
    assert weight[poisoned].mean() < 0.2 and weight[~poisoned].mean() > 0.8
    assert auroc(found.found["cross_entropy"], poisoned) > 0.9
    assert not found.found["suspects"].any() and found.found["labelled"].all()


def test_with_an_untrained_f_b_the_backdoor_is_learned(noisy):
    model, key = noisy.model, jax.random.key(1)
    found = CBD.build(noisy.dataset.info).train(key, model, noisy.samples, model.init(key))
    after = noisy.evaluate(model, found.variables)
    assert after.acc > 0.9 and after.asr > 0.8, (after.acc, after.asr)


def test_a_batch_larger_than_the_set_is_refused(fixture):
    defense = CBDConfig().build(fixture.dataset.info)
    words = "biased.batch_size: 64 is more than the 50 images"
    testing.check_refuses(defense.check, fixture.model, None, 50, 0, words=words)
    large = CBDConfig(train=TrainConfig(batch_size=70)).build(fixture.dataset.info)
    words = "train.batch_size: 70 is more than the 65 images"
    testing.check_refuses(large.check, fixture.model, None, 65, 0, words=words)


def test_a_drop_outside_the_training_is_refused():
    with pytest.raises(ConfigError, match=r"drops\.1: 1\.5 is out of range"):
        CBDConfig(drops=(0.5, 1.5))


def test_equal_first_stages_are_shared_and_others_are_not(fixture):
    info = fixture.dataset.info
    one, two = CBD.build(info), dataclasses.replace(CBD, drops=(0.5,)).build(info)
    assert one.settings == two.settings != CBDConfig().build(info).settings
    assert one.epoch(400) == 6
    few = Split(fixture.samples.images[:64], fixture.samples.labels[:64])
    assert one.begin(KEY, fixture.model, few).steps == 200
