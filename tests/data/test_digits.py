"""Tests of scikit-learn's digits as a data set."""

from __future__ import annotations

import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.core.types import Dataset
from d3jax.data import (
    DigitsConfig,
    fingerprint,
    make_digits,
)

from ..helpers.data_sets import check_contract, nearest_mean_accuracy


@pytest.fixture(scope="module")
def digits16() -> Dataset:
    return make_digits(DigitsConfig())


def test_digits_hold_every_real_image_exactly_once(digits16):
    from sklearn.datasets import load_digits

    check_contract(digits16)
    assert digits16.train.images.shape == (1438, 16, 16, 1) and digits16.test.images.shape == (
        359,
        16,
        16,
        1,
    )
    images = np.concatenate([digits16.train.images, digits16.test.images])
    labels = np.concatenate([digits16.train.labels, digits16.test.labels])
    np.testing.assert_array_equal(
        images, np.repeat(np.repeat(images[:, ::2, ::2], 2, 1), 2, 2)
    )  # nearest: 2×2 blocks
    raw = load_digits()
    want = np.column_stack([np.rint(raw.data / 16 * 255), raw.target])
    got = np.column_stack([images[:, ::2, ::2].reshape(1797, 64), labels])
    assert sorted(map(tuple, want)) == sorted(map(tuple, got))
    assert nearest_mean_accuracy(digits16) > 0.8


def test_digits_split_is_fixed_and_stratified(digits16):
    assert fingerprint(make_digits(DigitsConfig())) == fingerprint(digits16)
    train, test = (np.bincount(split.labels) for split in (digits16.train, digits16.test))
    assert np.all(np.abs(test - 0.2 * (train + test)) < 1)


@pytest.mark.parametrize("size, crop", [(8, 0), (16, 1), (32, 2)])
def test_digits_bilinear_is_smooth_and_scales(size, crop, digits16):
    smooth = make_digits(DigitsConfig(size=size, resize="bilinear"))
    check_contract(smooth)
    assert (
        smooth.info.shape == (size, size, 1) and smooth.info.crop == crop and not smooth.info.flip
    )
    np.testing.assert_array_equal(smooth.train.labels, digits16.train.labels)
    if size == 16:
        steps = [
            np.abs(np.diff(d.train.images.astype(int), axis=2)).max() for d in (smooth, digits16)
        ]
        assert steps[0] < steps[1] == 255


def test_digits_refuse_a_bad_size_or_resize():
    with pytest.raises(ConfigError, match="^size: 20 is not a multiple of 8"):
        DigitsConfig(size=20)
    with pytest.raises(ConfigError, match="resize: 'cubic' is not one of nearest, bilinear"):
        DigitsConfig(resize="cubic")
