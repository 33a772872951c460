"""Tests of sharpness-aware minimisation against check values and a computation by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.recipes import SamConfig
from d3jax.core.types import Variables
from d3jax.training import init_state, make_train_step
from d3jax.training.sam import ascended

W, G = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])


@pytest.mark.parametrize("adaptive, wanted", [(True, (0.702247, 3.745317)), (False, (1.2, 1.6))])
def test_the_step_to_the_second_gradient_has_the_published_check_value(adaptive, wanted):
    moved = ascended({"a": W}, {"a": G}, SamConfig(rho=2.0, adaptive=adaptive))["a"] - W
    np.testing.assert_allclose(moved, wanted, rtol=1e-5)


def test_the_norm_is_over_all_parameters_together():
    whole = ascended({"a": W}, {"a": G}, SamConfig(rho=2.0))["a"]
    parts = ascended({"a": W[:1], "b": W[1:]}, {"a": G[:1], "b": G[1:]}, SamConfig(rho=2.0))
    np.testing.assert_allclose(jnp.concatenate([parts["a"], parts["b"]]), whole, rtol=1e-6)


def test_a_gradient_of_zero_moves_nothing():
    assert jnp.array_equal(ascended({"a": W}, {"a": 0 * G}, SamConfig(rho=2.0))["a"], W)


def test_a_step_applies_the_gradient_of_the_perturbed_weights():
    """The loss is Σ w³; running statistics count how often the first pass updates them."""

    def loss(params, batch_stats, batch, key, data):
        stats = {"passes": batch_stats["passes"] + params["w"].sum()}
        return (params["w"] ** 3).sum(), (stats, {"size": params["w"].sum()})

    def stepped(sam):
        tx = optax.sgd(0.1)
        step = make_train_step(tx, loss=loss, batches=lambda key, step, data: None, sam=sam)
        variables = Variables({"w": W}, {"passes": jnp.zeros(())})
        return step(init_state(variables, tx, jax.random.key(0)), None)

    (state, metrics) = stepped(SamConfig(rho=0.5, adaptive=False))
    gradient = 3 * W**2
    there = W + 0.5 * gradient / jnp.linalg.norm(gradient)
    np.testing.assert_allclose(state.variables.params["w"], W - 0.1 * 3 * there**2, rtol=1e-6)
    assert state.variables.batch_stats["passes"] == 3 and metrics["size"] == 3
    assert metrics["loss"] == 9
    off, _ = stepped(SamConfig(rho=0.0))
    np.testing.assert_allclose(off.variables.params["w"], W - 0.1 * gradient, rtol=1e-6)
