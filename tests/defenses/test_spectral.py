"""Spectral signatures against a projection that is known, and on the fixture that they find."""

import numpy as np

from d3jax import testing
from d3jax.defenses import spectral
from d3jax.defenses.sample_detection.spectral import signature


def test_a_signature_is_the_squared_projection_on_the_first_direction():
    features = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])  # centred; the first axis is the top
    np.testing.assert_allclose(signature(features), [9, 9, 0, 0], atol=1e-12)
    moved = features + [10, 0]
    np.testing.assert_allclose(signature(moved), [9, 9, 0, 0], atol=1e-12)
    np.testing.assert_allclose(signature(moved, "uncentred"), [169, 49, 100, 100])


def test_the_poisoned_samples_of_the_fixture_rank_first(fixture):
    """And a fixed share of every class is flagged, clean classes included: known, and 15 % by default."""
    found = testing.check_sample_detector(
        spectral().build(fixture.dataset.info), fixture, auroc=0.9
    )
    labels = np.asarray(fixture.samples.labels)
    shares = [found.flagged[labels == label].mean() for label in range(4)]
    np.testing.assert_allclose(shares, 0.15, atol=0.02)
