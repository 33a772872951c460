"""Functions of whole sets, a batch at a time: the one place that cuts arrays into batches and puts results together on the host.

`batched_map` is for results of every row (features, scores, predictions), `batched_sums` for sums over rows (counts, losses).
What is the same for every batch is bound beforehand::

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

    A short last batch is a second shape, and of a jitted function a second program. While a batch is fetched the next one is being
    computed, so that at most two are on the device.

    Args:
        function: `function(*batch) -> results`, a pytree of arrays [B, …], jitted or not; what is drawn or drifts by the row takes
            its rows or keys as one more of the arrays.
        arrays: arrays [N, …], of NumPy or JAX; one of JAX is cut where it lies.
        batch_size: rows a call; the last one has what is left.

    Returns:
        The results as NumPy arrays [N, …]; without rows, arrays of no rows with the shapes and dtypes of one.

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
    """Add up what `function` says of the batches of `arrays`, all of one shape.

    Args:
        function: `function(*batch, rows, valid) -> sums`, a pytree of arrays of any shape: sums over the batch's rows that are
            `valid`, see `padded`.
        arrays: arrays [N, …], of NumPy or JAX.
        batch_size: rows a call; fewer where there are not so many.
        dtype: of the total (None: as `np.sum` has it, int64 for integers, float32 for float32).

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
    """Yield consecutive batches of `arrays` [N, …]: tuples of arrays [B, …], the last one shorter, or left out (`drop_last`)."""
    size = len(arrays[0])
    for first in range(0, size - batch_size + 1 if drop_last else size, batch_size):
        yield tuple(array[first : first + batch_size] for array in arrays)


def padded(*arrays: Any, batch_size: int) -> Iterator[tuple[Any, ...]]:
    """Yield batches of one shape, `(*arrays [B, …], rows [B], valid [B])`, the last one filled up with the last row.

    `rows` says which rows of the set they are, `valid` which of them are not filled in. Raises `ValueError` for arrays of no rows.
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
    """Return results on the host, each fetched once the next one is on its way."""
    fetched, pending = [], []
    for result in results:
        pending.append(result)
        if len(pending) > 1:
            fetched.append(jax.device_get(pending.pop(0)))
    return fetched + jax.device_get(pending)
