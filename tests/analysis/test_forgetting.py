"""Tests of the linear prediction of forgetting against gradient descent in NumPy."""

import numpy as np
import pytest

from d3jax.analysis.forgetting import decay, moment, retained, spectrum


def test_predicted_retention_equals_gradient_descent_of_a_linear_model():
    """NumPy runs full-batch heavy-ball descent of a linear model with a bias.

    There are two updates on different data.
    """
    rng = np.random.default_rng(0)
    # The last feature is always 0.
    updates = [rng.normal(size=(200, 5)) * [1, 0.5, 0.2, 0.05, 0] for _ in range(2)]
    direction = np.array([0.3, -0.2, 0.5, 1.0, 0.7])
    rates, momentum, weight_decay = np.linspace(0.2, 0.01, 40), 0.6, 1e-3
    best = rng.normal(size=6)  # the optimum of both updates, as labels have no noise
    w = best + np.append(direction, 0)
    measured = []
    for features in updates:
        phi = np.concatenate([features, np.ones((200, 1))], 1)
        speed = np.zeros(6)
        for rate in rates:
            gradient = phi.T @ (phi @ (w - best)) / 200 + weight_decay * (w - best)
            speed = momentum * speed + gradient
            w = w - rate * speed
        measured.append((np.append(direction, 0) @ (w - best)) / (direction @ direction))
    seconds = [moment(features) for features in updates]
    np.testing.assert_allclose(
        retained(direction, seconds, rates, momentum, weight_decay), measured, rtol=1e-9
    )
    np.testing.assert_allclose(
        retained(direction, seconds, rates)[0], retained(direction, seconds[:1], rates)[0]
    )


def test_directions_without_features_are_retained_and_others_forgotten():
    features = np.random.default_rng(1).normal(size=(300, 3)) * [1, 1, 0]
    rates = np.full(500, 0.1)
    assert retained(np.array([0.0, 0.0, 1.0]), [moment(features)], rates)[0] == pytest.approx(1)
    assert retained(np.array([1.0, 0.0, 0.0]), [moment(features)], rates)[0] < 1e-6
    assert retained(np.array([1.0, 0.0, 1.0]), [moment(features)], rates)[0] == pytest.approx(
        0.5, abs=1e-6
    )
    values, shares = spectrum(np.array([0.0, 0.0, 2.0]), moment(features))
    assert list(values) == sorted(values, reverse=True) and len(values) == 4
    assert (
        shares.sum() == pytest.approx(1)
        and shares[-1] == pytest.approx(1)
        and values[-1] == pytest.approx(0)
    )


def test_plain_descent_decays_like_an_exponential_of_the_sum_of_rates():
    curvatures, rates = np.array([0.0, 0.5, 2.0]), np.full(1000, 1e-3)
    np.testing.assert_allclose(
        decay(curvatures, rates), (1 - curvatures * 1e-3) ** 1000, rtol=1e-12
    )
    np.testing.assert_allclose(decay(curvatures, rates), np.exp(-curvatures), rtol=3e-3)
    assert abs(decay(np.array([30.0]), np.full(50, 0.1))[0]) > 1e6  # beyond 2 / λ it diverges


def test_moment_counts_rows_by_their_weights():
    features = np.random.default_rng(2).normal(size=(40, 3))
    twice = moment(np.concatenate([features, features[:10]])) * 50
    np.testing.assert_allclose(moment(features, 1 + (np.arange(40) < 10)) * 40, twice, rtol=1e-12)
