"""Tests of functions that are applied one batch at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.data.batched import batched_map, batched_sums, consecutive, padded

ROWS = np.arange(7, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)


@pytest.mark.parametrize("size", [1, 3, 7, 20])
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_mapping_in_batches_equals_mapping_the_whole(size, make):
    seen = []

    def compute(rows, labels):
        seen.append(len(rows))
        return {"sum": rows.sum(1), "pair": (rows * 2, labels)}

    found = batched_map(compute, make(ROWS), make(np.arange(7)), batch_size=size)
    np.testing.assert_array_equal(found["sum"], ROWS.sum(1))
    np.testing.assert_array_equal(found["pair"][0], ROWS * 2)
    np.testing.assert_array_equal(found["pair"][1], np.arange(7))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert sum(seen) == 7 and seen[:-1] == [size] * (len(seen) - 1)


def test_mapping_no_rows_gives_empty_arrays_of_the_right_shape():
    found = batched_map(jax.jit(lambda x: (x.sum(1), x.astype(int))), ROWS[:0], batch_size=4)
    assert found[0].shape == (0,) and found[0].dtype == np.float32
    assert found[1].shape == (0, 2) and found[1].dtype == np.int32


def test_the_next_batch_is_computed_before_a_batch_is_fetched(monkeypatch):
    events = []
    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: events.append("fetch") or fetch(x))

    def compute(rows):
        events.append("compute")
        return rows

    batched_map(compute, ROWS, batch_size=2)
    assert events == ["compute", "compute", *["fetch", "compute"] * 2, "fetch", "fetch"]


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_sums_count_every_row_once(size):
    """Rows that pad a batch do not count, and one program serves all batches."""
    shapes = set()

    @jax.jit
    def compute(rows, places, valid):
        shapes.add(rows.shape)
        return (rows * valid[:, None]).sum(0), jnp.where(valid, places, 0).sum(), valid.sum()

    total, places, count = batched_sums(compute, ROWS, batch_size=size)
    assert total.tolist() == [21, 21] and (places, count) == (21, 7)
    assert shapes == {(min(size, 7), 2)}
    doubled = batched_sums(compute, ROWS, batch_size=size, dtype=np.float64)
    assert doubled[0].dtype == np.float64 and total.dtype == np.float32


def test_sums_of_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        batched_sums(lambda rows, places, valid: rows.sum(), ROWS[:0], batch_size=4)


def test_the_last_batch_is_shorter_or_dropped_or_padded():
    assert [len(rows) for (rows,) in consecutive(ROWS, batch_size=3)] == [3, 3, 1]
    assert [len(rows) for (rows,) in consecutive(ROWS, batch_size=3, drop_last=True)] == [3, 3]
    *_, (rows, places, valid) = padded(ROWS, batch_size=3)
    assert rows[:, 0].tolist() == [6, 6, 6] and places.tolist() == [6, 6, 6]
    assert valid.tolist() == [True, False, False]
