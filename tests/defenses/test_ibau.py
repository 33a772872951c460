"""Tests of I-BAU: the implicit gradient against closed forms, and its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.images import as_float
from d3jax.core.types import Split
from d3jax.defenses import IBAUConfig, make_ibau
from d3jax.defenses.repair.ibau import consecutive, implicit, stored_batches
from d3jax.training import TrainData


def test_settings_are_the_published_ones():
    other, authors = IBAUConfig(), IBAUConfig(preset="authors")
    assert (other.rounds, other.steps, other.inner_rate, other.decay) == (5, 5, 10.0, 0.001)
    assert (other.map_rate, other.share, other.batch_size, other.space) == (
        0.1, 0.01, 256, "normalised",
    )  # fmt: skip
    assert (other.optimizer.name, other.optimizer.lr) == ("amsgrad", 1e-4)
    assert (authors.batch_size, authors.space) == (100, "pixel")
    assert (authors.optimizer.name, authors.optimizer.lr) == ("adam", 1e-3)


def test_the_scalar_problem_has_the_published_check_values():
    """F = ½aδ² − bθδ and L_out = cδ give v = c Σ (1 − 0.1 a)^k, and the exact implicit part b/a."""
    a = b = c = 1.0

    def inner_map(change, theta):
        return change - 0.1 * (a * change - b * theta)

    def outer(change, theta):
        return c * change

    for steps, wanted in ((5, 4.0951), (400, 10.0)):
        slope, v = jax.grad(
            lambda theta, steps=steps: implicit(inner_map, outer, jnp.float32(2.0), theta, steps),
            has_aux=True,
        )(jnp.float32(0.7))
        assert float(v) == pytest.approx(wanted, rel=1e-4)
        assert float(slope) == pytest.approx(0.1 * b * wanted, rel=1e-4)  # of 5 steps 0.40951


def test_many_steps_reach_the_exact_gradient_of_a_quadratic_problem():
    """δ*(θ) = A⁻¹ B θ minimises ½δᵀAδ − δᵀBθ, and L_out = ½‖δ − t‖² + ½‖θ‖²."""
    draws = np.random.default_rng(0)
    root = draws.normal(size=(4, 4))
    matrix = root @ root.T / 4 + np.eye(4)
    mixing, target, theta = draws.normal(size=(4, 3)), draws.normal(size=4), draws.normal(size=3)
    best = np.linalg.solve(matrix, mixing @ theta)
    wanted = mixing.T @ np.linalg.solve(matrix, best - target) + theta

    def inner_map(change, theta):
        return change - 0.2 * (matrix @ change - mixing @ theta)

    def outer(change, theta):
        return jnp.sum((change - target) ** 2) / 2 + jnp.sum(theta**2) / 2

    slope, _ = jax.grad(
        lambda theta: implicit(inner_map, outer, jnp.asarray(best), theta, 150), has_aux=True
    )(jnp.asarray(theta))
    np.testing.assert_allclose(slope, wanted, rtol=1e-3)


def test_stored_batches_are_the_reserved_images_in_turn():
    images = np.arange(10)[:, None, None, None] * np.ones((1, 2, 2, 3))
    split = Split(images.astype(np.uint8), np.arange(10))
    stored, count = stored_batches(jax.random.key(0), split, 4, lambda key, images: images)
    assert count == 3 and len(stored.labels) == 9
    assert np.array_equal(stored.images[:, 0, 0, 0], stored.labels)
    data = TrainData(stored, jnp.zeros(9, bool), {})
    for step in range(5):
        batch = consecutive(3, 3)(jax.random.key(1), jnp.int32(step), data)
        first = 3 * (step % 3)
        assert np.array_equal(batch.labels, stored.labels[first : first + 3])
        np.testing.assert_allclose(batch.images, as_float(stored.images[first : first + 3]))


def test_statistics_stay_and_the_perturbation_grows(fixture):
    config = IBAUConfig(rounds=2, batch_size=50, augment="none")
    repair = make_ibau(config, fixture.dataset.info)
    found = repair.repair(jax.random.key(0), fixture.model, fixture.variables, fixture.reserved)
    before, after = fixture.variables.batch_stats, found.variables.batch_stats
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, before, after)))
    assert len(found.trace["loss"]) >= 2 and found.trace["perturbation"][-1] > 0
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), fixture.variables.params, found.variables.params
    )
    assert 0 < max(jax.tree.leaves(moved)) < 0.01  # four steps of Adam at 1e-4
