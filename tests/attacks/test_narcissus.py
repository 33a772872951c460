"""Tests of the Narcissus attack: its warm-up, its search for the noise, and its images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.attacks.narcissus import NarcissusConfig, noise_loop, warm_up_loop
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import AttackError, ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import Batch, DataInfo, Split
from d3jax.data import digits
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import Hooks, cross_entropy, fit, victim_loop
from d3jax.training.victim import prepare

from ..helpers.small import small_model

INFO = DataInfo("rgb", (12, 9, 3), tuple("abcd"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (10, 14, 1), tuple("abcd"), (0.5,), (0.25,))
SHORT = TrainConfig(steps=20, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.02))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def clean(model, dataset):
    """Return a surrogate of so few steps that its loss is not close to 0."""
    return fit(victim_loop(KEY, model, dataset, None, SHORT))[0].variables


@pytest.fixture(scope="module")
def own(dataset):
    """Return the training images of the target class, 0."""
    rows = np.asarray(dataset.train.labels) == 0
    return Split(*(np.asarray(part)[rows] for part in dataset.train))


def target_loss(model, variables, images):
    """Return the mean cross-entropy of images with class 0, by the running statistics."""
    logits = model.apply(variables, images, train=False).logits
    return cross_entropy(logits, jnp.zeros(len(images), int)).mean()


def test_poisoned_images_have_the_noise_and_stamped_ones_three_times_as_much(rng):
    attack = NarcissusConfig(rate=0.5).build(INFO)
    levels = rng.integers(0, 256, (6, *INFO.shape))
    noise = rng.integers(-16, 17, INFO.shape)
    trigger = {"noise": jnp.asarray(noise, jnp.int32)}
    images = as_float(jnp.asarray(levels))
    stamped = np.round(255 * np.asarray(attack.stamp(trigger, images)))
    np.testing.assert_array_equal(stamped, np.clip(levels + 3 * noise, 0, 255))
    own = np.arange(6) % 2 == 0
    batch = attack.poison(trigger, KEY, Batch(images, jnp.arange(6) % 4, jnp.asarray(own)))
    wanted = np.where(own[:, None, None, None], np.clip(levels + noise, 0, 255), levels)
    np.testing.assert_array_equal(np.round(255 * np.asarray(batch.images)), wanted)


def test_a_fraction_as_factor_rounds_the_noise_to_levels():
    attack = NarcissusConfig(amplify=0.4).build(INFO)
    trigger = {"noise": jnp.full(INFO.shape, -4, jnp.int32)}
    out = attack.stamp(trigger, as_float(jnp.full((1, *INFO.shape), 100)))
    assert (np.round(255 * np.asarray(out)) == 98).all()


@pytest.mark.parametrize("info", [INFO, GREY], ids=["colour", "grey"])
def test_narcissus_keeps_the_contract(info):
    testing.check_attack(NarcissusConfig(rate=0.1).build(info), info)


def test_by_default_25_of_50000_images_are_poisoned_and_they_are_of_the_target_class():
    labels = jnp.arange(50_000) % 10
    info = DataInfo("rgb", (12, 9, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    chosen = NarcissusConfig(target=3).build(info).select(KEY, labels)
    assert int(chosen.sum()) == 25 and (labels[chosen] == 3).all()
    of_class = NarcissusConfig(target=3, rate=0.005, rate_of="class").build(info)
    assert int(of_class.select(KEY, labels).sum()) == 25


def test_settings_that_do_not_fit_are_refused():
    labels = jnp.arange(60) % 4
    with pytest.raises(AttackError, match="rate: 0.0005 of 60 training images is none, want"):
        NarcissusConfig().build(INFO).select(KEY, labels)
    with pytest.raises(AttackError, match="target class 'a', which has 15"):
        NarcissusConfig(rate=0.5).build(INFO).select(KEY, labels)
    with pytest.raises(ConfigError, match="eps: 0.5 is out of range, want ≥ 1"):
        NarcissusConfig(eps=0.5)


def test_the_warm_up_trains_parameters_and_statistics_of_a_copy(model, dataset, own):
    config, start = NarcissusConfig(warm_up=4, batch_size=50), model.init(KEY)
    before = jax.tree.map(np.array, start)
    loop = warm_up_loop(KEY, model, start, own, config, dataset.info)
    state, lines = fit(loop, Hooks(log_every=1))
    assert loop.steps == 4 * 2  # 100 images in two batches
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, start))
    for part in (0, 1):  # parameters and running statistics
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.variables[part], start[part])
        assert all(jax.tree.leaves(moved))
    assert lines[0]["loss"] > 1 and lines[-1]["loss"] < 0.1


def test_the_first_step_of_the_search_follows_the_gradient_by_running_statistics(
    model, dataset, clean, own
):
    """RAdam's first step is its learning rate times the gradient, not normalised."""
    images = as_float(jnp.asarray(own.images))
    slope = jax.grad(lambda noise: target_loss(model, clean, jnp.clip(images + noise, 0, 1)))
    slope = np.asarray(slope(jnp.zeros(dataset.info.shape)))
    lr = 2 * 20 / 255 / np.abs(slope).max()  # so the largest step is 20 levels
    config = NarcissusConfig(rounds=1, lr=float(lr), eps=16.0)
    still = dataclasses.replace(dataset.info, crop=0)
    loop = noise_loop(KEY, model, clean, own, config, still)
    state, lines = fit(loop, Hooks(log_every=1))
    np.testing.assert_allclose(lines[0]["loss"], target_loss(model, clean, images), rtol=1e-5)
    wanted = np.clip(-lr / 2 * slope, -16 / 255, 16 / 255)
    assert (np.abs(wanted) == np.float32(16 / 255)).any()
    found = np.asarray(state.variables.params["noise"])
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    assert loop.data.reference_params is clean


@pytest.mark.parametrize(("eps", "most"), [(16.0, 16), (3.7, 3)])
def test_the_search_lowers_the_loss_within_eps(model, dataset, clean, own, eps, most):
    config = NarcissusConfig(rate=0.1, eps=eps, rounds=60, lr=0.1, warm_up=1)
    attack = config.build(dataset.info)
    prepared, lines = prepare(KEY, model, clean, dataset, attack, Hooks(log_every=10))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"] and prepared.images is None
    noise = np.asarray(prepared.trigger["noise"])
    assert noise.dtype == np.int32 and noise.shape == dataset.info.shape
    assert np.abs(noise).max() == most
    images = as_float(jnp.asarray(dataset.test.images))  # images that the search has not seen
    moved = jnp.clip(images + noise / np.float32(255), 0, 1)
    assert target_loss(model, clean, moved) < target_loss(model, clean, images)
    again, _ = prepare(KEY, model, clean, dataset, attack)
    assert (np.asarray(again.trigger["noise"]) == noise).all()


def test_a_search_that_finds_nothing_is_refused(model, dataset, clean):
    attack = NarcissusConfig(rate=0.1, rounds=1, warm_up=0, lr=1e-9).build(dataset.info)
    with pytest.raises(AttackError, match="found no noise of a whole level"):
        prepare(KEY, model, clean, dataset, attack)


@pytest.mark.slow
def test_training_on_the_noise_makes_the_model_react_to_it_more_than_a_clean_model():
    """The noise fools a clean model of this size, too, and the poison adds to that.

    The clean model has an ASR of about 0.4 and the victim one of about 0.5, on digits with all
    images of the target class poisoned and without a warm-up.
    """
    dataset = digits(size=16).build()
    model = small_model(dataset.info)
    recipe = TrainConfig(steps=400, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
    config = NarcissusConfig(rate=1.0, rate_of="class", warm_up=0, rounds=200)
    attack = config.build(dataset.info)
    clean = fit(victim_loop(KEY, model, dataset, None, recipe))[0].variables
    prepared, _ = prepare(KEY, model, clean, dataset, attack)
    victim = fit(victim_loop(KEY, model, dataset, attack, recipe, prepared))[0].variables
    evaluate = make_evaluate(model, attack, 10)
    before, after = (evaluate(v, prepared.trigger, dataset.test) for v in (clean, victim))
    assert after.acc > before.acc - 0.03 and after.asr > before.asr + 0.05 and after.asr > 0.4
