"""Tests of SPECTRE: scores in closed form, robustness, and the samples of the fixture."""

import numpy as np
import pytest
from scipy.linalg import expm

from d3jax import testing
from d3jax.defenses import spectre
from d3jax.defenses.sample_detection.spectre import (
    SPECTREConfig,
    expected_poison,
    quantum_entropy,
    robust_whitening,
    scores_of_class,
    whitening,
)


def normal(count, size, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size))


@pytest.mark.parametrize(
    ("total", "size", "rate", "poison"),
    [
        (50_000, 5_000, 0.01, 500),
        (50_000, 5_000, 0.1, 1650),
        (4_000, 400, 0.1, 40),
        (9, 3, 0.01, 1),
    ],
)
def test_the_expected_poison_is_at_most_a_third_of_a_class(total, size, rate, poison):
    assert expected_poison(total, size, rate) == poison


def test_scores_are_those_of_the_matrix_exponential():
    features = normal(50, 4) * [3, 1, 1, 2]
    sigma = features.T @ features / 50
    weights = expm(4 * (sigma - np.eye(4)) / (np.linalg.norm(sigma, 2) - 1))
    weights /= np.trace(weights)
    wanted = [x @ weights @ x for x in features]
    found = quantum_entropy(features, 4.0)
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-9)
    assert found.mean == pytest.approx(np.mean(wanted))


def test_the_exponential_of_every_element_is_another_score():
    features = normal(50, 3) * [3, 1, 1]
    sigma = features.T @ features / 50
    weights = np.exp(4 * (sigma - np.eye(3)) / (np.linalg.norm(sigma, 2) - 1))
    wanted = [x @ (weights / np.trace(weights)) @ x for x in features]
    found = quantum_entropy(features, 4.0, "elementwise").scores
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert not np.allclose(found, quantum_entropy(features, 4.0).scores)


def test_a_large_alpha_scores_by_the_top_direction_and_none_by_the_norm():
    features = normal(100, 3) * [3, 1, 1]
    norms = (features**2).sum(1)
    np.testing.assert_allclose(quantum_entropy(features, 0.0).scores, norms / 3)
    _, _, directions = np.linalg.svd(features)
    top = (features @ directions[0]) ** 2
    np.testing.assert_allclose(quantum_entropy(features, 500.0).scores, top, rtol=1e-6)


def test_whitened_features_have_mean_0_and_covariance_1():
    features = normal(500, 3) @ [[2, 1, 0], [0, 1, 0], [0, 0, 5]] + 7
    whitened = whitening(features)(features)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(3), atol=1e-9)


def test_robust_whitening_ignores_distant_rows():
    clean, far = normal(1000, 2), np.full((50, 2), 20.0)
    mixed = np.concatenate([clean, far])
    robust, plain = robust_whitening(mixed, 100), whitening(mixed)
    assert np.abs(robust.mean - clean.mean(0)).max() < 0.1 < np.abs(plain.mean).min()
    assert np.abs(robust.matrix - np.eye(2)).max() < 0.3


def test_a_shift_in_the_smallest_of_many_directions_is_found():
    """The shift of 5 standard deviations is along one of 30 directions of different sizes."""
    sizes = np.linspace(10, 1, 30)
    features = normal(2000, 30)
    features[:200, 29] += 5

    def hits(*dimensions):
        config = SPECTREConfig(dimensions=dimensions)
        return (np.argsort(scores_of_class(features * sizes, 200, config))[-300:] < 200).sum()

    assert hits(4) < 60 and hits(4, 16, 30) > 170


def test_poisoned_samples_rank_higher_and_every_class_has_flags(fixture):
    """The target class has 40 poisoned samples of 132, and the method expects at most 13."""
    detector = spectre(poison_rate=0.1).build(fixture.dataset.info)
    found = testing.check_sample_detector(detector, fixture, auroc=0.6)
    labels = np.asarray(fixture.samples.labels)
    for label in range(4):
        own = labels == label
        assert found.flagged[own].sum() == round(1.5 * expected_poison(len(own), own.sum(), 0.1))
