"""Tests of the LIRA attack: its joint training, its residual, and the backdoor it plants."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.attacks.lira import LIRAConfig, joint_loop, make_lira
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.random import stream
from d3jax.core.types import Batch, DataInfo, Split, Variables
from d3jax.metrics.attack_success import make_evaluate
from d3jax.models import count_parameters
from d3jax.models.unet import unet
from d3jax.training import Hooks, fit, victim_loop
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.victim import poisoned_rows, prepare, trigger_of

from ..helpers.small import small_model

INFO = DataInfo("rgb", (8, 8, 3), tuple("abcde"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (9, 12, 1), tuple("abc"), (0.5,), (0.25,))
CIFAR = DataInfo("cifar10", (32, 32, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
TRAIN = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
KEY = jax.random.key(0)
SHORT = LIRAConfig(rate=0.2, eps=0.1, width=4, steps=150, batch_size=64, lr=0.05, generator_lr=1e-2)
"""Settings that suit the small data set, whose noise has a deviation of 38 of 255 levels."""


@pytest.mark.parametrize("info", [INFO, GREY], ids=["colour", "grey"])
def test_lira_keeps_the_contract(info):
    testing.check_attack(make_lira(LIRAConfig(width=2), info), info, eager=False)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"eps: 0.001 is out of range, want ≥ 0.002"):
        LIRAConfig(eps=0.001)
    with pytest.raises(ConfigError, match=r"alpha: 1.5 is out of range"):
        LIRAConfig(alpha=1.5)


def test_the_generator_has_about_as_many_parameters_as_the_authors_network():
    """The authors' U-Net has 7,788,681."""
    params = jax.eval_shape(make_lira(LIRAConfig(), CIFAR).init, KEY)
    assert count_parameters(params) == 7_760_163


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["drawn", "saturated"])
def test_the_residual_stays_within_eps(rng, scale):
    """ε is ten levels. A saturated generator moves all pixels by that, except at the limits."""
    attack = make_lira(LIRAConfig(eps=10 / 255, width=2), INFO)
    params = attack.init(KEY)["generator"]
    params["out"] = jax.tree.map(lambda x: scale * x, params["out"])
    levels = rng.integers(0, 256, (5, *INFO.shape)).astype(np.uint8)
    images = as_float(jnp.asarray(levels))
    stamped = np.asarray(attack.stamp({"generator": params}, images), np.float64) * 255
    np.testing.assert_allclose(stamped, np.round(stamped), atol=1e-4)
    moved = np.round(stamped) - levels
    made = np.asarray(unet(INFO, 2)[1](params, images), np.float64)
    exact = np.clip(levels + 10 * np.tanh(made), 0, 255)
    assert np.abs(moved).max() <= 10 and np.abs(stamped - exact).max() < 0.501
    assert (np.abs(moved) == 10).mean() > (0.8 if scale > 1 else 0)


def plain_loss(params, stats, model, generate, sets, config):
    """Return the joint loss, written from its formula, and the running statistics."""
    images, labels, wanted = sets

    def share(stats, images, labels):
        outputs = model.apply(Variables(params["model"], stats), images, train=True)
        chosen = jax.nn.log_softmax(outputs.logits)[jnp.arange(len(labels)), labels]
        return -chosen.mean(), outputs.batch_stats

    residual = config.eps * jnp.tanh(generate(params["generator"], images))
    clean, stats = share(stats, images, labels)
    attack, stats = share(stats, jnp.clip(images + residual, 0, 1), wanted)
    return config.alpha * clean + (1 - config.alpha) * attack, stats


def test_two_joint_steps_are_those_of_plain_gradients(dataset):
    """SGD has momentum 0.9, and Adam's first step is lr · g / |g|.

    The batch is the whole set. Images of 11 pixels give a small U-Net, without halvings.
    """
    config = LIRAConfig(mode="all_to_all", width=2, alpha=0.3, eps=0.05, steps=2)
    info = dataclasses.replace(dataset.info, shape=(11, 11, 3), crop=0)
    few = dataset._replace(
        train=Split(dataset.train.images[:40, :11, :11], dataset.train.labels[:40]), info=info
    )
    model, (start, generate) = small_model(info), unet(info, 2)

    def hide(params, images):
        return jnp.clip(images + config.eps * jnp.tanh(generate(params, images)), 0, 1)

    loop = joint_loop(KEY, model, start(KEY), hide, few, config)
    images, labels = as_float(jnp.asarray(few.train.images)), jnp.asarray(few.train.labels)
    sets = (images, labels, (labels + 1) % 4)

    def loss(params, stats):
        return plain_loss(params, stats, model, generate, sets, config)

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    step, states = jax.jit(loop.step), [loop.state]
    for _ in range(2):
        states.append(step(states[-1], loop.data)[0])
    before, once, twice = (state.variables for state in states)
    (value, stats), grads = slope(*before)
    _, again = slope(*once)
    assert float(step(loop.state, loop.data)[1]["loss"]) == pytest.approx(float(value), rel=1e-5)
    chex.assert_trees_all_close(once.batch_stats, stats, rtol=1e-4, atol=1e-6)
    for part in ("first", "second"):
        old, new = (before, once) if part == "first" else (once, twice)
        push = grads if part == "first" else jax.tree.map(lambda g, h: 0.9 * g + h, grads, again)
        moved = jax.tree.map(lambda w, g: w - 0.01 * g, old.params["model"], push["model"])
        chex.assert_trees_all_close(new.params["model"], moved, rtol=1e-4, atol=1e-6)
    trees = (before.params["generator"], once.params["generator"], grads["generator"])
    old, new, g = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(one)]) for one in trees)
    clear = np.abs(g) > 1e-5  # the biases before a normalisation have a gradient of 0
    assert clear.mean() > 0.8
    np.testing.assert_allclose((new - old)[clear], -1e-4 * np.sign(g[clear]), rtol=0.02)


@pytest.fixture(scope="module")
def prepared(model, dataset):
    """Return LIRA's attack on the small data set, its result and its log records."""
    attack = make_lira(SHORT, dataset.info)
    return attack, *prepare(KEY, model, None, dataset, attack, Hooks(log_every=30))


@pytest.mark.slow
def test_joint_training_finds_a_generator_that_fools_its_classifier(prepared, dataset):
    """The prepared images are the stamped ones, as a released set has them."""
    attack, found, lines = prepared
    assert attack.preparation.replaces
    assert lines[-1]["fooled"] > 0.95 and lines[-1]["attack_loss"] < 0.3 * lines[0]["attack_loss"]
    split, flags = poisoned_split(KEY, attack, dataset.train, found)
    assert flags.sum() == 80 and (split.labels[flags] == 0).all()
    np.testing.assert_array_equal(split.images[~flags], dataset.train.images[~flags])
    np.testing.assert_array_equal(split.images[flags], found.images)
    images = as_float(jnp.asarray(dataset.train.images[flags]))
    stamped = np.asarray(jax.jit(attack.stamp)(found.trigger, images)) * 255
    assert np.abs(stamped - np.asarray(found.images)).max() < 1.01
    moved = np.abs(np.asarray(found.images, int) - dataset.train.images[flags])
    assert 5 < moved.mean() and moved.max() <= 26


@pytest.mark.slow
def test_a_victim_learns_the_trigger_from_the_poisoned_set(prepared, model, dataset):
    attack, found, _ = prepared
    loop = victim_loop(KEY, model, dataset, attack, TRAIN, found)
    state, _ = fit(loop)
    counts = make_evaluate(model, attack, 4)(state.variables, trigger_of(loop, state), dataset.test)
    assert counts.acc > 0.85 and counts.asr > 0.8
    rows = np.asarray(poisoned_rows(KEY, attack, dataset.train.labels))
    np.testing.assert_array_equal(np.asarray(loop.data.split.images)[rows], found.images)
    chex.assert_trees_all_equal_shapes(found.trigger, attack.init(stream(KEY, "trigger")))


def test_poisoned_rows_get_the_wanted_labels_and_keep_their_prepared_images(rng):
    attack = make_lira(LIRAConfig(width=2, mode="all_to_all"), INFO)
    images = jnp.asarray(rng.random((6, *INFO.shape)), jnp.float32)
    labels, own = jnp.array([0, 1, 2, 3, 4, 4]), jnp.array([1, 0, 1, 0, 0, 1], bool)
    batch = attack.poison({}, KEY, Batch(images, labels, own))
    assert batch.labels.tolist() == [1, 1, 3, 3, 4, 0]
    assert batch.images is images
