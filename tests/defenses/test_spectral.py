"""Tests of spectral signatures: a known projection, and the samples of the shared fixture."""

import numpy as np

from d3jax import testing
from d3jax.defenses import spectral
from d3jax.defenses.sample_detection.spectral import signature


def test_a_signature_is_the_squared_projection_on_the_first_direction():
    features = np.array(
        [[3.0, 0], [-3, 0], [0, 1], [0, -1]]
    )  # centred, with the top direction (1, 0)
    np.testing.assert_allclose(signature(features), [9, 9, 0, 0], atol=1e-12)
    moved = features + [10, 0]
    np.testing.assert_allclose(signature(moved), [9, 9, 0, 0], atol=1e-12)
    np.testing.assert_allclose(signature(moved, "uncentred"), [169, 49, 100, 100])


def test_poisoned_samples_rank_first_and_every_class_has_the_same_flagged_share(fixture):
    """The method flags a fixed share of every class, clean ones included: 15 % by default."""
    found = testing.check_sample_detector(
        spectral().build(fixture.dataset.info), fixture, auroc=0.9
    )
    labels = np.asarray(fixture.samples.labels)
    shares = [found.flagged[labels == label].mean() for label in range(4)]
    np.testing.assert_allclose(shares, 0.15, atol=0.02)
