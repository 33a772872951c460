"""Checks of device memory, before a compiled program runs and after the memory ran out.

Their errors name the settings to lower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

from ..core.errors import OutOfMemoryError
from ..runtime.distributed import broadcast_from_host0
from ..runtime.main_memory import in_words, main_memory

LOWER = (
    "lower the batch size, the model's width or loop.steps_per_call, "
    "or run the members one after another (loop.members: apart)"
)
"""The advice at the end of every message about too little memory."""


@contextlib.contextmanager
def out_of_memory_named() -> Iterator[None]:
    """A context manager that raises `OutOfMemoryError` in place of JAX's out-of-memory error."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(
            f"the device ran out of memory ({str(error).splitlines()[0][:120]}): {LOWER}"
        ) from error


def memory_needed(program: jax.stages.Compiled) -> int | None:
    """Return the bytes of memory that a compiled program needs on each device, or None if unknown.

    They are the arguments, the results that reuse no argument's memory, and the temporary arrays.
    They are unknown where the backend has no memory analysis.
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
    """Return the total memory of this process's device in bytes, or None if unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":  # several processes may share it, and none knows its share
        return main_memory() if jax.process_count() == 1 else None
    return (device.memory_stats() or {}).get("bytes_limit")


def memory_free() -> int | None:
    """Return the free memory of this process's device in bytes, or None if unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def check_memory(program: jax.stages.Compiled, steps: int, say: Callable[[str], None]) -> None:
    """Report by `say` the memory that a compiled train program needs; raise if the device has less.

    The program runs `steps` steps. Raises `OutOfMemoryError` where the device has less. All
    processes raise or none does.
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
