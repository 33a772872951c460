"""Tests of ANP: masks, loss, pruning and the choice of the threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.random import stream
from d3jax.core.types import Batch, Model, Outputs, Variables
from d3jax.defenses import ANPConfig, make_anp
from d3jax.defenses.repair.anp import anp_loss
from d3jax.defenses.repair.masks import masked, ones_for, pruned_at
from d3jax.metrics.attack_success import triggered_split
from d3jax.training import TrainData


def test_settings_are_the_published_ones():
    authors, other = ANPConfig(), ANPConfig(preset="backdoorbench")
    shown = [
        (one.schedule.steps, one.schedule.batch_size, one.schedule.optimizer.lr)
        for one in (authors, other)
    ]
    assert shown == [(2000, 128, 0.2), (2000, 256, 0.01)]
    for one in (authors, other):
        optimizer = one.schedule.optimizer
        assert (one.eps, one.alpha, one.drop, one.rule) == (0.4, 0.2, 0.1, "defender")
        assert (optimizer.momentum, optimizer.weight_decay, optimizer.schedule) == (
            0.9, 0.0, "constant",
        )  # fmt: skip


def test_masks_of_ones_reproduce_the_model_to_the_bit(fixture):
    params = fixture.variables.params
    same = masked(params, ones_for(fixture.model, params), ones_for(fixture.model, params))
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, same, params)))
    half = masked(params, jax.tree.map(lambda one: one / 2, ones_for(fixture.model, params)))
    for i in range(2):
        layer, whole = half[f"BatchNorm_{i}"], params[f"BatchNorm_{i}"]
        np.testing.assert_allclose(layer["scale"], whole["scale"] / 2)
        assert jnp.array_equal(layer["bias"], whole["bias"])


HEAD = jax.random.normal(jax.random.key(0), (6, 3))
PARAMS = {"norm": {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0) - 2}}


def linear():
    """Return a model of one norm layer without statistics, and a linear layer."""

    def apply(variables, images, *, train, edit=None):
        norm = variables.params["norm"]
        return Outputs((images * norm["scale"] + norm["bias"]) @ HEAD, {}, {})

    return Model(lambda key: Variables(PARAMS, {}), apply)


def loss_of(masks, eps, alpha, key):
    draws = np.random.default_rng(2)
    batch = Batch(jnp.asarray(draws.random((5, 6)), jnp.float32), jnp.arange(5) % 3, None)
    data = TrainData(None, None, {}, PARAMS)
    value, (_, reported) = anp_loss(linear(), eps, alpha)(masks, {}, batch, key, data)
    return batch, float(value), reported


def cross_entropy64(images, scale, bias, labels):
    logits = (images * scale + bias) @ np.asarray(HEAD, np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return (np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean()


def test_the_loss_is_that_of_float64():
    """The perturbation is drawn by the same keys; its gradient is taken by differences."""
    eps, alpha, key = 0.4, 0.2, jax.random.key(7)
    masks = {"norm": jnp.linspace(0.2, 1.0, 6)}
    batch, value, reported = loss_of(masks, eps, alpha, key)
    images, labels = np.asarray(batch.images, np.float64), np.asarray(batch.labels)
    scale, bias = (np.asarray(PARAMS["norm"][name], np.float64) for name in ("scale", "bias"))
    m = np.asarray(masks["norm"], np.float64)
    keys = jax.random.split(stream(key, "noise"), 2)  # leaves: bias, scale
    drawn = [np.asarray(jax.random.uniform(k, (6,), minval=-eps, maxval=eps)) for k in keys]
    noise_bias, noise_scale = (one.astype(np.float64) for one in drawn)

    def perturbed(noise_scale, noise_bias):
        return cross_entropy64(images, scale * (m + noise_scale), bias * (1 + noise_bias), labels)

    step = 1e-6 * np.eye(6)
    up_scale = [
        perturbed(noise_scale + one, noise_bias) - perturbed(noise_scale - one, noise_bias)
        for one in step
    ]
    up_bias = [
        perturbed(noise_scale, noise_bias + one) - perturbed(noise_scale, noise_bias - one)
        for one in step
    ]
    moved = noise_scale + eps * np.sign(up_scale), noise_bias + eps * np.sign(up_bias)
    clean, noisy = cross_entropy64(images, scale * m, bias, labels), perturbed(*moved)
    assert value == pytest.approx(alpha * clean + (1 - alpha) * noisy, rel=1e-5)
    assert float(reported["noisy_loss"]) == pytest.approx(noisy, rel=1e-5)
    assert noisy > clean


def test_without_perturbation_the_loss_is_the_cross_entropy():
    _, value, reported = loss_of({"norm": jnp.ones(6)}, 0.0, 0.2, jax.random.key(0))
    assert value == pytest.approx(float(reported["clean_loss"]), rel=1e-6)


def test_channels_up_to_the_threshold_are_pruned():
    found = pruned_at({"a/norm": np.array([0.0, 0.3, 0.5])}, 0.3)
    assert {path: mask.tolist() for path, mask in found.items()} == {
        ("a", "norm"): [True, True, False]
    }


def test_the_pruned_model_keeps_biases_and_the_accuracy_that_the_rule_promises(fixture):
    schedule = ScheduleConfig(
        steps=150,
        batch_size=50,
        augment="none",
        optimizer=OptimConfig(lr=0.2, weight_decay=0.0, schedule="constant"),
    )
    test = fixture.dataset.test
    given = {
        "defender": {},
        "oracle": {
            "test_set": test,
            "triggered_set": triggered_split(fixture.attack, fixture.trigger, test),
        },
    }
    found = {}
    for rule, sets in given.items():
        repair = make_anp(ANPConfig(rule=rule, schedule=schedule), fixture.dataset.info)
        assert repair.needs == tuple(sets)
        done = repair.repair(
            jax.random.key(0), fixture.model, fixture.variables, fixture.reserved, **sets
        )
        count = 0
        for i in range(2):
            layer = done.variables.params[f"BatchNorm_{i}"]
            before = fixture.variables.params[f"BatchNorm_{i}"]
            gone = np.asarray(layer["scale"]) == 0
            count += int(gone.sum())
            assert jnp.array_equal(layer["bias"], before["bias"])
            assert np.array_equal(np.asarray(layer["scale"])[~gone], before["scale"][~gone])
        assert count == done.trace["pruned"][-1]
        found[rule] = fixture.evaluate(fixture.model, done.variables)
    assert found["oracle"].acc >= 0.9 * fixture.before.acc
    assert found["oracle"].asr <= fixture.before.asr
