"""Training batches brought to the device one by one, for image sets too large for its memory.

They have the same rows, and give the same numbers, as a set that is on the device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ..core.errors import ConfigError, install
from ..core.types import Batch, Split
from .step import Rows

Feed = Callable[[int], Iterator[Batch]]
"""`feed(first) -> batches`: yields the batches of the steps from `first` on, in order.

They are uint8 images and true labels in host memory.
"""

AHEAD = 8
"""The number of batches that are read in advance."""
THREADS = 4


def check_streaming() -> None:
    """Raise `ConfigError` where streaming lacks the package grain or JAX's CPU backend."""
    if importlib.util.find_spec("grain") is None:
        raise ConfigError(f"loop.placement: streaming needs the package grain: {install('stream')}")
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise ConfigError(
            "loop.placement: streaming draws rows on the CPU backend, which JAX_PLATFORMS excludes"
        ) from error


def make_feed(
    split: Split,
    poisoned: np.ndarray,
    rows: Rows,
    key: jax.Array,
    steps: int,
    covers: np.ndarray | None = None,
) -> Feed:
    """Build a `Feed`: a function that yields a train loop's batches, read ahead from host memory.

    The loop runs `steps` steps over the images of `split`. `rows(key, step)` returns the row
    numbers that a step sees, and `poisoned` [N] is the mask of the attacker's rows. `covers` [N] is
    the mask of its cover rows, if the attack has some. The package grain reads ahead in threads.
    `split` may be memory-mapped.
    Raises `ConfigError` as `check_streaming` does.
    """
    check_streaming()
    import grain

    # On an accelerator the draw would wait for the step that is running there.
    cpu = jax.local_devices(backend="cpu")[0]
    draw, key = jax.jit(rows), jax.device_put(key, cpu)

    def read(step: int) -> Batch:
        with jax.default_device(cpu):
            mine = np.asarray(draw(key, np.int32(step)))
        chosen = None if covers is None else covers[mine]
        return Batch(
            split.images[mine], split.labels[mine], poisoned[mine], rows=mine, covers=chosen
        )

    def feed(first: int) -> Iterator[Batch]:
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        return iter(grain.MapDataset.source(range(first, steps)).map(read).to_iter_dataset(options))

    return feed
