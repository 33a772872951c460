"""Functions that apply another function to whole arrays, one batch at a time.

Only this module cuts arrays into batches and joins the results on the host. `batched_map` is for
results of every row (features, scores, predictions), `batched_sums` for sums over rows (counts,
losses). Bind the arguments that are the same for every batch beforehand::

    features = batched_map(functools.partial(compute, model, variables), images, batch_size=500)
    scores = batched_map(functools.partial(score, model, variables), *split, batch_size=500)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np


def batched_map(function: Callable[..., Any], *arrays: Any, batch_size: int) -> Any:
    """Apply `function` to consecutive batches of `arrays` and concatenate its results on the host.

    A short last batch has a second shape, for which a jitted function compiles a second program.
    The next batch is computed while a batch is fetched, so at most two are on the device.

    Args:
        function: `function(*batch) -> results`, a pytree of arrays [B, …], jitted or not. If its
            result depends on row numbers or keys, pass these as one more of the arrays.
        arrays: arrays [N, …] of NumPy or JAX. A JAX array is cut on its device.
        batch_size: rows of a call. The last call has the remaining rows.

    Returns:
        The results as NumPy arrays [N, …]. If N is 0, they have the shapes and dtypes that the
        function gives for one row.

    Example:
        >>> batched_map(lambda x: {"square": x**2}, np.arange(5), batch_size=2)
        {'square': array([ 0,  1,  4,  9, 16])}
    """
    if not len(arrays[0]):
        example = function(*(np.zeros((1, *array.shape[1:]), array.dtype) for array in arrays))
        return jax.tree.map(lambda part: np.asarray(part)[:0], example)
    parts = _fetched(function(*batch) for batch in consecutive(*arrays, batch_size=batch_size))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def batched_sums(
    function: Callable[..., Any], *arrays: Any, batch_size: int, dtype: Any = None
) -> Any:
    """Sum the results of `function` over consecutive batches of `arrays`, on the host.

    All batches have one shape, so a jitted function compiles once.

    Args:
        function: `function(*batch, rows, valid) -> sums`, a pytree of arrays of any shape. It sums
            over the rows of the batch that are `valid`, see `padded`.
        arrays: arrays [N, …] of NumPy or JAX.
        batch_size: rows of a call, at most N.
        dtype: dtype of the totals (None: as in `np.sum`, int64 for integers, float32 for float32).

    Returns:
        The totals as NumPy arrays.

    Raises:
        ValueError: there are no rows.

    Example:
        >>> batched_sums(lambda x, rows, valid: (x * valid).sum(), np.arange(5), batch_size=2)
        np.int64(10)
    """
    parts = _fetched(function(*batch) for batch in padded(*arrays, batch_size=batch_size))
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=dtype), *parts)


def consecutive(
    *arrays: Any, batch_size: int, drop_last: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Yield consecutive batches of `arrays` [N, …] as tuples of arrays [B, …].

    A last batch that is shorter is yielded too, unless `drop_last`.
    """
    size = len(arrays[0])
    for first in range(0, size - batch_size + 1 if drop_last else size, batch_size):
        yield tuple(array[first : first + batch_size] for array in arrays)


def padded(*arrays: Any, batch_size: int) -> Iterator[tuple[Any, ...]]:
    """Yield batches of one shape, the last one padded: `(*arrays [B, …], rows [B], valid [B])`.

    The last batch is filled up with the last row. `rows` are the row numbers in the set, and
    `valid` is False for the rows that fill up. Raises `ValueError` for arrays without rows.
    """
    size = len(arrays[0])
    if not size:
        raise ValueError("there are no rows to make batches of")
    batch_size = min(batch_size, size)
    for first in range(0, size, batch_size):
        places = np.arange(first, first + batch_size)
        rows = np.minimum(places, size - 1)
        yield *(array[rows] for array in arrays), rows, places < size


def _fetched(results: Iterable[Any]) -> list[Any]:
    """Fetch batch results from the device to the host, each after the next one is dispatched."""
    fetched, pending = [], []
    for result in results:
        pending.append(result)
        if len(pending) > 1:
            fetched.append(jax.device_get(pending.pop(0)))
    return fetched + jax.device_get(pending)
