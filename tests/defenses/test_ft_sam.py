"""Tests of FT-SAM against check values of BackdoorBench's program."""

import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.defenses import FTSAMConfig
from d3jax.defenses.repair.ft_sam import smoothed_kl
from d3jax.training.optim import make_schedule


def test_settings_are_the_published_ones():
    config = FTSAMConfig()
    assert (config.sam.rho, config.sam.adaptive, config.smoothing) == (2.0, True, 0.1)
    schedule = config.schedule
    assert (schedule.epochs, schedule.batch_size) == (100, 256)
    optimizer = schedule.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.01, 0.9, 5e-4)


def test_the_learning_rate_has_the_published_check_values():
    rate = make_schedule(FTSAMConfig().schedule.optimizer.schedule, steps=1000, steps_per_epoch=10)
    found = [0.01 * float(rate(step)) for step in (0, 50, 100, 150, 199, 999)]
    wanted = [0.01, 0.005, 0, 0.005, 0.00999753, 0.00999753]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-8)


def test_the_divergence_of_an_even_prediction_has_the_published_check_value():
    value = smoothed_kl(jnp.zeros((1, 10)), jnp.array([3]), 0.1)
    assert float(value[0]) == pytest.approx(1.757780, abs=1e-5)


def test_the_divergence_is_the_one_of_float64():
    draws = np.random.default_rng(0)
    logits, labels = draws.normal(size=(6, 5)), draws.integers(0, 5, 6)
    target = np.full((6, 5), 0.1 / 4)
    target[np.arange(6), labels] = 0.9
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = (target * np.log(target / softmax)).sum(1)
    found = smoothed_kl(jnp.asarray(logits), jnp.asarray(labels), 0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    plain = smoothed_kl(jnp.asarray(logits), jnp.asarray(labels), 0.0)
    np.testing.assert_allclose(plain, -np.log(softmax[np.arange(6), labels]), rtol=1e-5)
