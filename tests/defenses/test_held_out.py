"""Tests of held-out reserved images, and of keeping the best model of a training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.core.types import Split, Variables
from d3jax.defenses.repair.held_out import (
    accuracy_on,
    divide,
    keep_best,
    no_best,
    traced_accuracy,
)
from d3jax.training import init_state, make_train_step


def test_the_reserved_images_are_divided_without_overlap():
    split = Split(np.arange(10)[:, None, None, None].astype(np.uint8), np.arange(10))
    learned, held = divide(jax.random.key(0), split, 0.2)
    assert len(held.labels) == 2 and sorted([*learned.labels, *held.labels]) == list(range(10))
    assert np.array_equal(learned.images[:, 0, 0, 0], learned.labels)
    assert len(divide(jax.random.key(0), split, 0.01)[1].labels) == 1


@pytest.mark.parametrize("count", [1, 7, 130])
def test_the_traced_accuracy_is_that_of_the_host(fixture, monkeypatch, count):
    monkeypatch.setattr("d3jax.defenses.repair.held_out.EVAL_BATCH", 50)
    wrong = np.arange(count) % 3 == 0
    test = fixture.dataset.test
    labels = np.where(wrong, (np.asarray(test.labels)[:count] + 1) % 4, test.labels[:count])
    split = Split(test.images[:count], labels)
    host = accuracy_on(fixture.model, fixture.variables, split)
    traced = jax.jit(lambda variables, split: traced_accuracy(fixture.model, variables, split))(
        fixture.variables, Split(*map(jnp.asarray, split))
    )
    assert float(traced) == pytest.approx(host, abs=1e-6)
    assert host == pytest.approx(1 - wrong.mean(), abs=0.05)


def test_the_model_with_the_highest_score_at_the_end_of_a_period_is_kept():
    """The only weight counts the steps, and the score is highest at 6; only 4, 8 … are measured."""

    def loss(params, batch_stats, batch, key, data):
        return -params["w"], (batch_stats, {})

    tx, variables = optax.sgd(1.0), Variables({"w": jnp.float32(0)}, {})
    step = make_train_step(
        tx,
        loss=loss,
        batches=lambda key, step, data: None,
        advance=keep_best(lambda variables, data: -abs(variables.params["w"] - 6.5), 4),
    )
    state = init_state(variables, tx, jax.random.key(0), no_best(variables))
    for _ in range(17):
        state, _ = jax.jit(step)(state, None)
    assert state.variables.params["w"] == 17
    assert state.carry["variables"].params["w"] == 8 and state.carry["score"] == -1.5
