"""A lock between processes that goes with its holder: a kill leaves nothing to clean up."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import jax

from .sharding import agree, is_first


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


@contextlib.contextmanager
def locked_by_all(path: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """As `locked`, for all processes of a study at once: the first holds the file, the others wait for it in step."""
    if jax.process_count() == 1:
        with locked(path, say):
            yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        waited = False
        while not agree([_taken(file)])[0]:
            if not waited:
                say(f"{path.parent}: another study is at work here; waiting for it")
            waited = True
            time.sleep(1)
        yield


def _taken(file: IO) -> bool:
    if not is_first():
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
