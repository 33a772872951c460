"""The size of the computer's main memory, and a check that data fit into it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ..core.errors import ConfigError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""The files in which Linux states the memory limit of a container."""


@functools.cache
def main_memory() -> int:
    """Return the bytes of memory that programs may use: those of the computer or its container."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, LIMITS):
        try:
            there = min(there, int(path.read_text()))
        except (OSError, ValueError):  # not in a container, or the limit is "max"
            continue
    return there


def check_fits(needed: int, what: str) -> None:
    """Raise `ConfigError` if `needed` bytes for `what` exceed the main memory.

    `what` is a plural noun phrase with which the message begins.
    """
    there = main_memory()
    if needed > there:
        raise ConfigError(
            f"{what} take {in_words(needed)} of memory, this computer has {in_words(there)}"
        )


def in_words(count: int) -> str:
    """Return a number of bytes as text in MiB or GiB."""
    unit, letters = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:,.{0 if count >= 10 * unit else 1}f} {letters}"
