"""Batches brought to the device one by one, for sets that do not fit it: the rows and numbers that a resident set gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ..core.errors import ConfigError, install
from ..core.types import Batch, Split
from .step import Rows

Feed = Callable[[int], Iterator[Batch]]
"""`feed(first) -> batches`: what the steps from `first` on see, in order; uint8 images and true labels, in host memory."""

AHEAD = 8
"""Batches read before they are asked for."""
THREADS = 4


def check_streaming() -> None:
    """Raises `ConfigError` where grain is not installed, or no CPU backend is there to draw rows on."""
    if importlib.util.find_spec("grain") is None:
        raise ConfigError(f"loop.placement: streaming takes one more package, {install('stream')}")
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise ConfigError(
            "loop.placement: streaming draws rows on the CPU backend, which JAX_PLATFORMS leaves out"
        ) from error


def make_feed(split: Split, poisoned: np.ndarray, rows: Rows, key: jax.Array, steps: int) -> Feed:
    """Builds the feed of a loop of `steps` steps over `split`; `rows(key, step)` says which images a step sees.

    Reading ahead and its threads are grain's. `split` may be memory-mapped. Raises `ConfigError` as `check_streaming`.
    """
    check_streaming()
    import grain

    cpu = jax.local_devices(backend="cpu")[
        0
    ]  # on an accelerator the draw would wait behind the step that is running there
    draw, key = jax.jit(rows), jax.device_put(key, cpu)

    def read(step: int) -> Batch:
        with jax.default_device(cpu):
            mine = np.asarray(draw(key, np.int32(step)))
        return Batch(split.images[mine], split.labels[mine], poisoned[mine])

    def feed(first: int) -> Iterator[Batch]:
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        return iter(grain.MapDataset.source(range(first, steps)).map(read).to_iter_dataset(options))

    return feed
