"""Tests of SCAn: its estimate and division in closed form, and the samples of the fixture."""

import numpy as np
import pytest

from d3jax import testing
from d3jax.defenses import scan
from d3jax.defenses.sample_detection.common import deviation_index
from d3jax.defenses.sample_detection.scan import (
    Covariances,
    divide,
    estimate,
    identity_of,
    judge,
)

ONE = Covariances(np.eye(2), np.eye(2))


def drawn(seed=0, classes=6, each=200):
    """Return features of `classes` classes with unit variation, their labels and identities."""
    identities = 6 * np.random.default_rng(7).normal(size=(classes, 3))
    labels = np.repeat(np.arange(classes), each)
    varied = np.random.default_rng(seed).normal(size=(len(labels), 3))
    return identities[labels] + varied, labels, identities


def test_the_index_is_the_deviation_in_units_of_the_mad():
    index = deviation_index(np.array([1, 1.1, 0.9, 1.05, 5]))
    assert index[4] == pytest.approx(53.285, abs=1e-3)
    assert not deviation_index(np.ones(4)).any()


def test_an_identity_is_shrunk_by_the_share_of_the_variation():
    np.testing.assert_allclose(identity_of(3, np.array([4.0, 8.0]), ONE), [3, 6])


def test_the_estimate_separates_identity_and_variation():
    features, labels, identities = drawn(classes=40)
    found = estimate(features - features.mean(0), labels)
    np.testing.assert_allclose(found.variation, np.eye(3), atol=0.05)
    np.testing.assert_allclose(found.identity, np.cov(identities.T, bias=True), rtol=0.05, atol=0.5)


def test_the_gain_is_half_the_drop_of_the_squared_distances():
    """With two far points the groups are found, and the variation is the identity matrix."""
    features = np.array([[-10.0, 0], [-10, 0], [10, 0], [10, 0]])
    division = divide(features, ONE, np.random.default_rng(0))
    assert division.second.sum() == 2 and division.second[0] != division.second[2]
    assert division.gain == pytest.approx(100 / 2)  # the mean is 0, and so is the one identity
    np.testing.assert_allclose(division.nearness, division.second)


@pytest.mark.parametrize("poisoned", [30, 150])
def test_the_contaminated_class_and_its_poisoned_rows_are_flagged(poisoned):
    features, labels, _ = drawn()
    trusted, known, _ = drawn(1, each=20)
    rows = np.flatnonzero(labels == 2)[:poisoned]
    features[rows] += [12, -12, 12]
    middle = trusted.mean(0)
    found = judge(
        (features - middle, labels), (trusted - middle, known), np.exp(2), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(np.flatnonzero(found.flagged), rows)
    others = np.delete(np.arange(len(labels)), rows)
    assert found.scores[rows].min() > found.scores[others].max()


def test_poisoned_samples_rank_first_and_few_clean_images_are_refused(fixture):
    detector = scan().build(fixture.dataset.info)
    testing.check_sample_detector(detector, fixture, auroc=0.9)
    testing.check_refuses(
        detector.check, fixture.model, None, 100, 5, words="5 reserved images, want at least two"
    )
