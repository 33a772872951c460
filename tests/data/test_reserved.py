"""Tests of the draw of reserved clean images."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.config.recipes import ReservedConfig
from d3jax.core.types import Split
from d3jax.data import (
    reserve,
)

from ..helpers.data_sets import fails

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def split_of(labels) -> Split:
    return Split(np.zeros((len(labels), 1, 1, 1), np.uint8), np.array(labels, np.int32))


@settings(deadline=None, max_examples=60)
@given(LABELS, st.data(), st.booleans(), st.integers(0, 3))
def test_reserve_is_exact_and_repeatable(labels, data, stratified, seed):
    count = data.draw(st.integers(1, len(labels)))
    config = ReservedConfig(count=count, stratified=stratified)
    rows = reserve(split_of(labels), config, seed, 5)
    assert np.issubdtype(rows.dtype, np.integer) and len(rows) == count
    assert (
        np.all(np.diff(rows) > 0) and rows[0] >= 0 and rows[-1] < len(labels)
    )  # sorted, none twice, all inside
    np.testing.assert_array_equal(rows, reserve(split_of(labels), config, seed, 5))
    if stratified:
        share = count / len(labels) * np.bincount(labels, minlength=5)
        assert np.all(np.abs(np.bincount(np.array(labels)[rows], minlength=5) - share) < 1)


def test_reserve_follows_its_fraction_count_and_seed():
    split = split_of(np.arange(1000) % 10)
    assert len(reserve(split, ReservedConfig(), 0, 10)) == 50
    assert len(reserve(split, ReservedConfig(fraction=0.0126), 0, 10)) == 13  # rounded
    assert len(reserve(split, ReservedConfig(fraction=0.5, count=7), 0, 10)) == 7  # count wins
    assert reserve(split, ReservedConfig(fraction=1.0), 0, 10).tolist() == list(range(1000))
    for stratified in (False, True):
        a, b = (reserve(split, ReservedConfig(stratified=stratified), seed, 10) for seed in (0, 1))
        assert set(a) != set(b)
        assert set(a) <= set(
            reserve(split, ReservedConfig(stratified=stratified, fraction=0.1), 0, 10)
        )
    plain = np.bincount(split.labels[reserve(split, ReservedConfig(), 0, 10)], minlength=10)
    assert plain.tolist() != [5] * 10  # a random draw is not balanced, a stratified one is
    assert (
        np.bincount(split.labels[reserve(split, ReservedConfig(stratified=True), 0, 10)]).tolist()
        == [5] * 10
    )
    on_device = Split(split.images, jnp.asarray(split.labels))
    np.testing.assert_array_equal(
        reserve(on_device, ReservedConfig(), 0, 10), reserve(split, ReservedConfig(), 0, 10)
    )


def test_reserve_stratified_rare_classes_keep_their_share():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    rows = reserve(split_of(labels), ReservedConfig(fraction=0.1, stratified=True), 0, 4)
    assert np.bincount(labels[rows], minlength=4).tolist() == [90, 9, 1, 0]


def test_reserve_refuses_too_many_images_or_none():
    fails(
        lambda: reserve(split_of([0, 1, 2]), ReservedConfig(count=4), 0, 3),
        "4 images asked for",
        "has 3",
    )
    fails(
        lambda: reserve(split_of([0, 1, 2]), ReservedConfig(fraction=0.1), 0, 3),
        "0.1 of 3 training images is none",
    )


def test_reserve_takes_only_the_named_classes():
    labels = np.repeat([0, 1, 2, 3], [50, 30, 20, 10])
    rows = reserve(split_of(labels), ReservedConfig(count=20, classes=(1, 2)), 0, 4)
    assert np.bincount(labels[rows], minlength=4).tolist() == [0, 12, 8, 0]
    fewer = reserve(split_of(labels), ReservedConfig(count=10, classes=(1, 2)), 0, 4)
    assert set(fewer) < set(rows)
    fails(
        lambda: reserve(split_of(labels), ReservedConfig(count=5, classes=(1, 4)), 0, 4),
        "reserved.classes: 4 is no class; the data set has 4, 0 to 3",
    )
    fails(
        lambda: reserve(split_of(labels), ReservedConfig(count=20, classes=(3,)), 0, 4),
        "20 images of class 3 asked for, the training set has 10",
    )


def test_reserve_draws_a_long_tail():
    labels = np.repeat(np.arange(5), 1000)
    config = ReservedConfig(count=1000, imbalance=0.01)
    found = np.bincount(labels[reserve(split_of(labels), config, 0, 5)], minlength=5)
    assert found.sum() == 1000
    np.testing.assert_allclose(found[1:] / found[:-1], 0.01**0.25, rtol=0.1)
