"""Files that are written whole or not at all. No jax."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


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
