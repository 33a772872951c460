"""Functions that read and write the files of a run folder safely.

A file is written as a whole or not at all, and a damaged file is noticed when it is read. Does not
import jax.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..core.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
"""Error numbers after which nothing more can be written to a disk."""


def storage_error(error: BaseException, path: object = None) -> StorageError | None:
    """Return a `StorageError` for the error of a full or read-only disk, and None for others.

    `path` names the file in the message if the error does not.
    """
    if isinstance(error, StorageError):
        return error
    text = str(error)
    if isinstance(error, OSError):
        if error.errno not in _FULL:
            return None
        path, text = path or error.filename, error.strerror or text
    else:  # TensorStore gives the text of the error, but no errno
        found = next((code for code in _FULL if os.strerror(code) in text), None)
        if found is None:
            return None
        text = os.strerror(found)
    where = f"{path}: " if path else ""
    return StorageError(
        f"{where}cannot be written ({text}); what is finished stays: make room and run the same "
        "command again to continue"
    )


def set_aside(path: Path) -> Path:
    """Rename a wrong or damaged file or folder to `<name>.damaged`, and return the new path.

    If that name is taken, a number is added, so that nothing is overwritten.
    """
    names = (f"{path.name}.damaged{i or ''}" for i in range(10_000))
    free = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    path.rename(free)
    return free


def make_folder(path: Path) -> None:
    """Make a folder and its parents, after renaming any file that is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocked = next(one for one in (path, *path.parents) if os.path.lexists(one))
        _clear(blocked, "a folder")
        path.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Raise `OSError` if no file can be made in a folder."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def make_way(path: Path) -> None:
    """Rename a folder at `path` to `<name>.damaged`, so that a file can be written there."""
    if path.is_dir():
        _clear(path, "a file")


def read_text(path: Path) -> str:
    """Return the text of a file, or "" if it cannot be read.

    Bytes that are not UTF-8 are replaced.
    """
    try:
        return path.read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> Any:
    """Return the data in a JSON file, or None if the file is missing or damaged."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError):
        return None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return the contents of a JSON file with a checksum, or None if it is missing or changed."""
    found = read_json(path)
    if not isinstance(found, dict):
        return None
    return found if found.pop("checksum", None) == _checksum(found) else None


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a dict to a JSON file with a checksum, by which `read_sealed` detects changes."""
    plain = json.loads(json.dumps(content))
    write_text(path, json.dumps({**plain, "checksum": _checksum(plain)}, indent=1))


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def remove(path: Path) -> None:
    """Delete a file if it exists, or rename a folder of that name to `<name>.damaged`."""
    make_way(path)
    path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text to a file atomically: the file is written as a whole or not at all."""
    write_bytes(path, lambda file: file.write(text.encode("utf8", errors="replace")))


def write_bytes(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a binary file atomically, with the bytes that the function `write(file)` writes.

    `write(file)` fills a temporary file, which then replaces the file at `path`.
    """
    make_folder(path.parent)
    make_way(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the results of a shared run folder
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _clear(path: Path, wanted: str) -> None:
    """Rename the file or folder at `path` to `<name>.damaged`, and warn that it was in the way."""
    aside = set_aside(path)
    warnings.warn(f"{path} is not {wanted}: it was renamed to {aside.name}", stacklevel=4)
