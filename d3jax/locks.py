"""A lock between processes that goes with its holder: a kill leaves nothing to clean up."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Holds the lock file `path` (made if need be); waits where another process does, after saying so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{path.parent}: another process is at work here; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
