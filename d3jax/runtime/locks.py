"""Locks between processes, which go with their holder: a kill leaves nothing to clean up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import jax

from .distributed import broadcast_from_host0, is_primary

Say = Callable[[str], object]


@contextlib.contextmanager
def locked_by_all(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock file `path` (made if need be) for all processes of a study at once.

    Where another study holds it, that is said once and waited for: the primary process takes the
    lock, and the others wait in step with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, waited = filelock.FileLock(path), False
    try:
        while not broadcast_from_host0([_take(lock)])[0]:
            if not waited:
                say(f"{path.parent}: another process is at work here; waiting for it")
            waited = True
            time.sleep(0.2 if jax.process_count() == 1 else 1)
        yield
    finally:
        lock.release()


def _take(lock: filelock.BaseFileLock) -> bool:
    """Return whether the lock is held now; only the primary process asks for it."""
    if not is_primary():
        return True
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    return True
