"""A lock on a folder between processes, which is released when its holder ends.

A killed process leaves nothing to clean up. filelock uses the locks of the operating system. Where
the system or the disk has no locks, filelock falls back to a file that names the holder.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import jax

from .distributed import broadcast_from_host0, is_primary
from .files import make_folder, make_way, read_text, write_text
from .stopping import check_stopped

Say = Callable[[str], object]


@contextlib.contextmanager
def locked_by_all(path: Path, say: Say) -> Iterator[None]:
    """Return a context manager that holds the lock file `path` for all processes of a study.

    The file is made if necessary. If another study holds the lock, `say` is called once with a line
    that names its process and host, and the lock is waited for. The primary process takes the lock,
    and the other processes wait in step with it.
    """
    make_folder(path.parent)
    make_way(path)
    holder = path.with_name("lock.holder")
    lock, waited = filelock.FileLock(path), False
    try:
        while not broadcast_from_host0([_take(lock)])[0]:
            if not waited:
                who = read_text(holder) or "another process"
                say(f"{path.parent}: {who} is using this folder; waiting for it")
            waited = True
            check_stopped()
            time.sleep(0.2 if jax.process_count() == 1 else 1)
        if is_primary():
            write_text(holder, f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        if lock.is_locked:
            holder.unlink(missing_ok=True)
        lock.release()


def _take(lock: filelock.BaseFileLock) -> bool:
    """Try to take a folder's file lock in the primary process, and return whether it is held now.

    The other processes return True.
    """
    if not is_primary():
        return True
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    return True
