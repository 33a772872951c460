"""Tests of Hessian products, Taylor expansions and eigenvalues of a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.analysis.curvature import hessian_product, make_backdoor_loss, taylor, top_eigenvalues
from d3jax.analysis.loss_landscape import losses_at
from d3jax.core.images import as_float


@pytest.fixture
def double():
    """Enable float64 while a test runs."""
    with jax.enable_x64(True):
        yield


def small_loss():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.integers(0, 3, 20))
    params = {"a": jnp.asarray(rng.normal(size=(5, 7))), "b": jnp.asarray(rng.normal(size=(7, 3)))}

    def loss(params):
        logits = jnp.tanh(x @ params["a"]) @ params["b"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    return loss, params


def test_hessian_products_match_finite_differences(double):
    loss, params = small_loss()
    direction = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(1).normal(size=x.shape)), params
    )
    found, h = hessian_product(loss, params, direction), 1e-5

    def gradient(t):
        return jax.grad(loss)(jax.tree.map(lambda x, d: x + t * d, params, direction))

    wanted = jax.tree.map(lambda a, b: (a - b) / (2 * h), gradient(h), gradient(-h))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * scale), found, wanted
    )


def test_taylor_expansion_has_an_error_of_third_order(double):
    loss, params = small_loss()
    direction = jax.tree.map(jnp.ones_like, params)
    expansion = taylor(loss, params, direction)

    def at(t):
        return float(loss(jax.tree.map(lambda x, d: x + t * d, params, direction)))

    errors = [abs(expansion(t) - at(t)) for t in (0.02, 0.01)]
    # An error of third order falls to an eighth at half the distance.
    assert (
        expansion(0.0) == pytest.approx(at(0.0)) and errors[1] < errors[0] / 6 and errors[1] < 1e-4
    )


@pytest.mark.slow
def test_top_eigenvalues_match_the_whole_hessian(double):
    loss, params = small_loss()
    flat, restore = jax.flatten_util.ravel_pytree(params)
    whole = np.linalg.eigvalsh(np.asarray(jax.hessian(lambda x: loss(restore(x)))(flat)))[::-1]
    np.testing.assert_allclose(
        top_eigenvalues(loss, params, count=3, tolerance=1e-8), whole[:3], rtol=1e-6
    )


def test_make_backdoor_loss_agrees_with_losses_at(model, victim, attack, dataset):
    rows = np.flatnonzero(np.asarray(dataset.test.labels) != 0)
    loss = make_backdoor_loss(model, attack, victim.variables.batch_stats)
    images, labels = (
        as_float(jnp.asarray(dataset.test.images[rows])),
        jnp.asarray(dataset.test.labels[rows]),
    )
    found = losses_at(model, attack, victim.trigger, [victim.variables], dataset.test)
    assert float(loss(victim.variables.params, victim.trigger, images, labels)) == pytest.approx(
        found.backdoor_loss[0], rel=1e-4
    )
