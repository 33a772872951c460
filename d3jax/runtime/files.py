"""A lock between processes that goes with its holder: a kill leaves nothing to clean up."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


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
    import jax  # not above: reading a run folder must not need it

    from .distributed import broadcast_from_host0

    if jax.process_count() == 1:
        with locked(path, say):
            yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        waited = False
        while not broadcast_from_host0([_taken(file)])[0]:
            if not waited:
                say(f"{path.parent}: another study is at work here; waiting for it")
            waited = True
            time.sleep(1)
        yield


def _taken(file: IO) -> bool:
    from .distributed import is_primary

    if not is_primary():
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, lambda file: file.write(text.encode("utf8")))


def write_bytes(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all: `write(file)` fills it, then it takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared run folder's results
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
