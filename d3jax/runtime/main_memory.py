"""The computer's main memory: how much there is, and refusing before work what cannot fit."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ..core.errors import ConfigError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may use."""


@functools.cache
def main_memory() -> int:
    """Return the bytes that programs here may use: the computer's, or its container's limit."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, LIMITS):
        try:
            there = min(there, int(path.read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return there


def check_fits(needed: int, what: str) -> None:
    """Raise `ConfigError` where `what` takes more bytes than there are."""
    there = main_memory()
    if needed > there:
        raise ConfigError(
            f"{what} take {in_words(needed)} of memory, this computer has {in_words(there)}"
        )


def in_words(count: int) -> str:
    """Return a number of bytes in words."""
    unit, letters = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:,.{0 if count >= 10 * unit else 1}f} {letters}"
