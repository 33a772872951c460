"""Tests of the Blind attack: its loss, its threshold, its pattern, and the backdoor it plants."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.attacks.blind import BlindConfig, make_blind
from d3jax.attacks.poisoning import poisoned_share
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import AttackError, ConfigError
from d3jax.core.types import Batch, DataInfo
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import Hooks, fit, train_backdoored, victim_loop
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.step import TrainData

INFO = DataInfo("rgb", (8, 9, 3), tuple("abcde"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (12, 10, 1), tuple("abc"), (0.5,), (0.25,))
CIFAR = DataInfo("cifar10", (32, 32, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
TRAIN = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
KEY = jax.random.key(0)


@pytest.mark.parametrize("pattern", ["pixels", "white"])
@pytest.mark.parametrize("info", [INFO, GREY], ids=["colour", "grey"])
def test_blind_keeps_the_contract(info, pattern):
    testing.check_attack(make_blind(BlindConfig(pattern=pattern), info), info)


def test_the_pattern_has_nine_black_and_white_pixels_in_the_upper_right():
    attack = make_blind(BlindConfig(), CIFAR)
    grey = jnp.full((1, 32, 32, 3), 0.5)
    out = np.asarray(attack.stamp(attack.init(KEY), grey))[0]
    half = 0.5
    wanted = np.full((32, 32), half)
    wanted[3:8, 26:29] = [
        [1, 0, 1],
        [half, 1, half],
        [half, half, 0],
        [half, 1, half],
        [1, 0, 1],
    ]
    np.testing.assert_array_equal(out, np.repeat(wanted[..., None], 3, 2))


@pytest.mark.parametrize(("size", "count"), [(1, 1), (3, 9)])
def test_a_white_square_has_its_size_and_place(size, count):
    config = BlindConfig(pattern="white", size=size, position="bottom_left", margin=1)
    attack = make_blind(config, GREY)
    out = np.asarray(attack.stamp(attack.init(KEY), jnp.zeros((1, *GREY.shape))))[0, ..., 0]
    assert out.sum() == count == (out == 1).sum()
    assert (out[11 - size : 11, 1 : 1 + size] == 1).all()


def test_a_pattern_that_does_not_fit_is_refused():
    small = dataclasses.replace(INFO, shape=(7, 7, 3))
    with pytest.raises(AttackError, match="patch of 5 with margin 3 does not fit 7×7 images"):
        make_blind(BlindConfig(), small)
    with pytest.raises(ConfigError, match="threshold: 0.* is out of range"):
        BlindConfig(threshold=0.0)


def test_no_training_image_is_poisoned_and_no_set_is_released(dataset):
    attack = make_blind(BlindConfig(), dataset.info)
    selected = attack.select(KEY, jnp.asarray(dataset.train.labels))
    assert selected.shape == dataset.train.labels.shape and not selected.any()
    assert poisoned_share(attack, selected, 128) == 0
    with pytest.raises(AttackError, match="no poisoned set"):
        poisoned_split(KEY, attack, dataset.train)


def softmax_loss(params, batch_stats, batch, key, data):
    """Return the mean cross-entropy of a linear classifier, and a running mean of its inputs."""
    flat = batch.images.reshape(len(batch.images), -1)
    chosen = jax.nn.log_softmax(flat @ params)[jnp.arange(len(flat)), batch.labels]
    stats = 0.9 * batch_stats + 0.1 * flat.mean(0)
    return -chosen.mean(), (stats, {"accuracy": jnp.zeros(())})


def in_numpy(weights, images, labels):
    """Return the same cross-entropy in float64, and its gradient by the weights."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    scores = np.exp(flat @ weights)
    shares = scores / scores.sum(1, keepdims=True)
    hot = np.eye(weights.shape[1])[labels]
    return -(hot * np.log(shares)).sum(1).mean(), flat.T @ (shares - hot) / len(images)


@pytest.mark.parametrize("mode", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("active", [True, False], ids=["on", "off"])
def test_one_loss_and_its_gradient_are_those_of_numpy(rng, mode, active):
    """The loss is w_c · L(x, y) + w_a · L(stamp(x), wanted) below the threshold, else w_c · L."""
    images = rng.random((10, *INFO.shape)).astype(np.float32)
    labels = rng.integers(0, 5, 10).astype(np.int32)
    weights, stats = 0.1 * rng.standard_normal((images[0].size, 5)), rng.random(images[0].size)
    clean, slope = in_numpy(weights, images, labels)
    config = BlindConfig(
        mode=mode, target=2, clean_weight=0.7, attack_weight=0.4,
        threshold=clean + (0.01 if active else -0.01),
    )  # fmt: skip
    attack = make_blind(config, INFO)
    trigger = attack.init(KEY)
    stamped = images.copy()
    for row, column, value in [
        (3, 3, 1), (3, 4, 0), (3, 5, 1), (4, 4, 1), (5, 5, 0), (6, 4, 1), (7, 3, 1), (7, 4, 0),
        (7, 5, 1),
    ]:  # fmt: skip
        stamped[:, row, column] = value
    wanted = np.full(10, 2) if mode == "all_to_one" else (labels + 1) % 5
    backdoor, push = in_numpy(weights, stamped, wanted)
    batch = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.zeros(10, bool))
    assert attack.objective
    objective = jax.value_and_grad(attack.objective(softmax_loss), has_aux=True)
    (value, (moved, reported)), grad = objective(
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(stats, jnp.float32),
        batch,
        KEY,
        TrainData(None, None, trigger),
    )
    share = 0.4 * active
    np.testing.assert_allclose(value, 0.7 * clean + share * backdoor, rtol=1e-5)
    np.testing.assert_allclose(grad, 0.7 * slope + share * push, atol=1e-6)
    once = 0.9 * stats + 0.1 * images.reshape(10, -1).mean(0)
    twice = 0.9 * once + 0.1 * stamped.reshape(10, -1).mean(0)
    np.testing.assert_allclose(moved, twice if active else once, rtol=1e-5)
    assert set(reported) == {"accuracy", "clean_loss", "attack_loss", "attacked"}
    np.testing.assert_allclose(reported["clean_loss"], clean, rtol=1e-5)
    np.testing.assert_allclose(reported["attack_loss"], backdoor, rtol=1e-5)
    assert reported["attacked"] == active


def test_training_above_the_threshold_is_clean_training(model, dataset):
    """After three steps the variables are those of the training without an attack."""
    short = dataclasses.replace(TRAIN, steps=3)
    attack = make_blind(BlindConfig(threshold=1e-6), dataset.info)
    state, lines = fit(victim_loop(KEY, model, dataset, attack, short), Hooks(log_every=1))
    clean, clean_lines = fit(victim_loop(KEY, model, dataset, None, short), Hooks(log_every=1))
    chex.assert_trees_all_close(state.variables, clean.variables, atol=1e-5)
    for line, other in zip(lines, clean_lines, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5) and line["attacked"] == 0


@pytest.mark.parametrize("mode", ["all_to_one", "all_to_all"])
def test_blind_plants_a_backdoor_in_a_model_of_clean_images(mode, model, dataset):
    attack = make_blind(BlindConfig(mode=mode), dataset.info)
    victim = train_backdoored(KEY, model, dataset, attack, TRAIN, Hooks(log_every=10))
    counts = make_evaluate(model, attack, 4)(victim.variables, victim.trigger, dataset.test)
    assert counts.acc > 0.85 and counts.asr > 0.9
    attacked = victim.trace["attacked"]
    assert attacked[0] < 1 and (attacked[-10:] == 1).all()
