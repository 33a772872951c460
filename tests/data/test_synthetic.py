"""Tests of generated data sets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from d3jax.data import (
    SyntheticConfig,
    fingerprint,
    make_synthetic,
)

from ..helpers.data_sets import check_contract, nearest_mean_accuracy


def test_synthetic_is_balanced_learnable_and_follows_its_seed():
    config = SyntheticConfig(
        size=12, channels=2, classes=7, train=1003, test=105
    )  # two blocks: 1000 and 3
    dataset = make_synthetic(config)
    check_contract(dataset)
    assert dataset.train.images.shape == (1003, 12, 12, 2) and dataset.test.images.shape == (
        105,
        12,
        12,
        2,
    )
    counts = np.bincount(dataset.train.labels)
    assert len(counts) == 7 and counts.max() - counts.min() <= 1
    assert set(np.bincount(dataset.test.labels)) == {15}
    assert nearest_mean_accuracy(dataset) > 0.95
    assert fingerprint(make_synthetic(config)) == fingerprint(dataset)
    other = make_synthetic(dataclasses.replace(config, seed=1))
    assert np.any(other.train.images != dataset.train.images) and np.any(
        other.train.labels != dataset.train.labels
    )
    more = make_synthetic(dataclasses.replace(config, train=50))
    np.testing.assert_array_equal(
        more.test.images, dataset.test.images
    )  # the test set does not depend on the training set's size


def test_synthetic_noise_and_shift_have_the_given_strength():
    base = SyntheticConfig(size=8, channels=1, classes=2, train=400, test=4, noise=0, shift=0)
    still = make_synthetic(base).train
    assert len(np.unique(still.images, axis=0)) == 2  # one prototype per class
    moved = make_synthetic(dataclasses.replace(base, shift=1)).train
    assert len(np.unique(moved.images, axis=0)) == 2 * 9
    noisy = make_synthetic(dataclasses.replace(base, noise=0.05)).train
    inside = (still.images > 60) & (
        still.images < 195
    )  # far from the ends, where nothing is clipped
    assert np.std((noisy.images - still.images.astype(float))[inside] / 255) == pytest.approx(
        0.05, rel=0.02
    )
