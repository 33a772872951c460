"""Tests of the rows of batches: random permutations and epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.core.errors import ConfigError
from d3jax.data.batching import batch_rows, epoch_plan, permute


@settings(deadline=None, max_examples=12)
@given(size=st.sampled_from([1, 2, 17, 1000]), seed=st.integers(0, 2**31 - 1))
def test_permute_is_a_permutation(size, seed):
    assert sorted(permute(jax.random.key(seed), jnp.arange(size), size).tolist()) == list(
        range(size)
    )


def test_permute_is_uniform():
    """The places of 20 positions over 4,000 keys pass a chi-square test.

    The statistic has 361 degrees of freedom, and is within 5 standard deviations of its mean.
    """
    keys = jax.random.split(jax.random.key(0), 4000)
    places = np.asarray(jax.vmap(lambda key: permute(key, jnp.arange(20), 20))(keys))
    counts = np.stack([np.bincount(places[:, i], minlength=20) for i in range(20)])
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert abs(chi_square - 361) < 5 * np.sqrt(2 * 361)
    neighbours = np.abs(np.diff(places, axis=1)) == 1  # 1/10 for a random order
    assert abs(neighbours.mean() - 0.1) < 0.005


def test_an_epoch_repeats_no_row_and_the_next_one_has_another_order():
    plan = {"size": 23, "steps_per_epoch": 4, "batch_size": 5}
    rows = [np.asarray(batch_rows(jax.random.key(0), jnp.int32(step), **plan)) for step in range(8)]
    first, second = np.concatenate(rows[:4]), np.concatenate(rows[4:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 20
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("size", "batch", "drop_last", "plan"),
    [
        (50000, 128, True, (390, 128)),
        (2500, 256, False, (10, 250)),
        (144, 256, False, (1, 144)),
        (100, 100, True, (1, 100)),
    ],
)
def test_epoch_plan_gives_steps_and_batch_size(size, batch, drop_last, plan):
    assert epoch_plan(size, batch, drop_last=drop_last) == plan


def test_a_training_batch_larger_than_the_set_is_refused():
    with pytest.raises(ConfigError, match="batch_size: 101 is more than the 100 images"):
        epoch_plan(100, 101, drop_last=True)
