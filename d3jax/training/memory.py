"""Device memory: what a program needs, what there is, and errors that say what to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

from ..core.errors import OutOfMemoryError
from ..runtime.distributed import broadcast_from_host0
from ..runtime.main_memory import in_words, main_memory

LOWER = "lower the batch size, the model's width or loop.steps_per_call, or run members apart (loop.members)"


@contextlib.contextmanager
def out_of_memory_named() -> Iterator[None]:
    """Turn the backend's error for a device out of memory into `OutOfMemoryError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(
            f"the device ran out of memory ({str(error).splitlines()[0][:120]}): {LOWER}"
        ) from error


def memory_needed(program: jax.stages.Compiled) -> int | None:
    """Return the bytes on each device that `program` holds at once.

    They are arguments, results that reuse none of them, and scratch. None where the backend does
    not say.
    """
    used = program.memory_analysis()
    if used is None:
        return None
    return (
        used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
        + used.temp_size_in_bytes
    )


def memory_there() -> int | None:
    """Return the bytes that this process's device may give to programs; None where it does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":  # several processes may share it, and none knows what is its own
        return main_memory() if jax.process_count() == 1 else None
    return (device.memory_stats() or {}).get("bytes_limit")


def memory_free() -> int | None:
    """Return how many of those bytes are not in use."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def check_memory(program: jax.stages.Compiled, steps: int, say: Callable[[str], None]) -> None:
    """Say what memory a program of `steps` steps needs.

    Raises `OutOfMemoryError` where the device has less; all processes agree.
    """
    needed = memory_needed(program)
    if needed is None:
        return
    there, kind = memory_there(), jax.local_devices()[0].device_kind
    if there is None:
        say(f"needs {in_words(needed)} of memory")
        return
    say(f"needs {in_words(needed)} of the {in_words(there)} of memory on {kind}")
    if broadcast_from_host0([needed > there])[0]:
        raise OutOfMemoryError(
            f"a call of {steps} steps needs {in_words(needed)} of memory, {kind} has "
            f"{in_words(there)}: {LOWER}"
        )
