"""Tests of optimisers and learning-rate schedules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.recipes import OptimConfig
from d3jax.core.types import Variables
from d3jax.training import (
    TrainData,
    init_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)
from d3jax.training.optim import restart_every, scale_by_step_rate


def test_sgd_matches_pytorchs_coupled_weight_decay():
    """NumPy makes two updates of v ← 0.9 v + g + wd·w and w ← w − lr·v."""
    config = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01, schedule="constant")
    tx = make_optimizer(config, steps=10, steps_per_epoch=1)
    w, v, params = np.array([1.0, -2.0]), np.zeros(2), {"w": jnp.array([1.0, -2.0])}
    state = tx.init(params)
    for g in (np.array([0.5, 0.25]), np.array([-1.0, 2.0])):
        v = 0.9 * v + g + 0.01 * w
        w = w - 0.1 * v
        updates, state = tx.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], w, rtol=1e-6)


def test_amsgrad_is_pytorchs():
    """NumPy makes the updates of torch.optim.Adam(amsgrad=True) with coupled weight decay."""
    config = OptimConfig(name="amsgrad", lr=0.1, weight_decay=0.01, schedule="constant")
    tx = make_optimizer(config, steps=10, steps_per_epoch=1)
    w, params = np.array([1.0, -2.0]), {"w": jnp.array([1.0, -2.0])}
    m = v = largest = np.zeros(2)
    state = tx.init(params)
    for t, g in enumerate(([5.0, 0.25], [-0.1, 2.0], [0.01, -0.02], [0.3, 0.1]), 1):
        slope = np.array(g) + 0.01 * w
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        largest = np.maximum(largest, v)
        w = w - 0.1 / (1 - 0.9**t) * m / (np.sqrt(largest) / np.sqrt(1 - 0.999**t) + 1e-8)
        updates, state = tx.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_schedules_match_their_closed_forms():
    by_epoch = make_schedule("cosine_epoch", steps=100, steps_per_epoch=10)
    wanted = [0.5 * (1 + np.cos(np.pi * (step // 10) / 10)) for step in range(100)]
    np.testing.assert_allclose([by_epoch(step) for step in range(100)], wanted, rtol=1e-5)
    short = make_schedule("cosine_epoch", steps=14, steps_per_epoch=10)
    assert short(13) == pytest.approx(0.5)  # the second of two epochs, although it is not complete
    cosine = make_schedule("cosine", steps=100, steps_per_epoch=10)
    np.testing.assert_allclose([cosine(0), cosine(50), cosine(100)], [1, 0.5, 0], atol=1e-7)
    assert make_schedule("constant", steps=100, steps_per_epoch=10)(73) == 1
    cycle = [
        float(make_schedule("onecycle", steps=100, steps_per_epoch=10)(step)) for step in range(100)
    ]
    assert max(cycle) == pytest.approx(1, rel=1e-3) and cycle[0] < 0.05 and cycle[-1] < 0.005
    waves = make_schedule("cosine_100", steps=1000, steps_per_epoch=10)
    found = [float(waves(step)) for step in (0, 50, 100, 200)]
    assert found == pytest.approx([1, 0.5, 0, 1], abs=1e-6)
    early = make_schedule("early_drop", steps=200, steps_per_epoch=10)
    assert [float(early(step)) for step in (0, 19, 20, 199)] == pytest.approx([1, 1, 0.1, 0.1])
    fifths = make_schedule("fifths", steps=100, steps_per_epoch=10)
    found = [float(fifths(step)) for step in (0, 19, 20, 40, 60, 79, 80, 99)]
    assert found == pytest.approx([1, 1, 0.1, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rel=1e-5)


def test_optimisers_read_the_step_and_the_data():
    """Learning rates come in the data, and the momentum restarts every third step."""
    tx = optax.chain(
        restart_every(optax.trace(0.9), 3),
        scale_by_step_rate(lambda step, data: data.trigger[step]),
    )

    def straight(params, batch_stats, batch, key, data):
        return jnp.sum(params["w"]), (batch_stats, {})

    step = make_train_step(tx, loss=straight, batches=lambda key, step, data: None)
    rates = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    data = TrainData(None, None, jnp.asarray(rates))
    state, w, v = init_state(Variables({"w": jnp.ones(3)}, {}), tx, jax.random.key(0)), 1.0, 0.0
    for i, rate in enumerate(rates):
        v = 1 + 0.9 * (0 if i % 3 == 0 else v)
        w -= rate * v
        state, _ = jax.jit(step)(state, data)
        np.testing.assert_allclose(state.variables.params["w"], np.full(3, w), rtol=1e-5)
