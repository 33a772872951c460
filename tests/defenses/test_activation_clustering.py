"""Tests of activation clustering on two hand-made clouds and on the shared fixture."""

import numpy as np

from d3jax import testing
from d3jax.defenses import activation_clustering
from d3jax.defenses.sample_detection.activation_clustering import clusters


def test_two_clouds_are_two_clusters_and_nearness_separates_the_smaller():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 6)) * 0.1
    features[:20, 0] += 5
    smaller, near = clusters(features, 3, seed=0)
    assert smaller.tolist() == [True] * 20 + [False] * 80
    assert near[:20].min() > 0.5 > near[20:].max()


def test_the_poisoned_samples_of_the_fixture_rank_first(fixture):
    detector = activation_clustering().build(fixture.dataset.info)
    testing.check_sample_detector(detector, fixture, auroc=0.9)
