"""Files of a run folder: written whole or not at all; a damaged one is noticed when read. No jax."""

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
"""Errors after which nothing more can be written."""


def storage_error(error: BaseException, path: object = None) -> StorageError | None:
    """Return the one line for an error after which nothing more can be written; None for others."""
    if isinstance(error, StorageError):
        return error
    text = str(error)
    if isinstance(error, OSError):
        if error.errno not in _FULL:
            return None
        path, text = path or error.filename, error.strerror or text
    else:  # TensorStore has no errno, and says it in words
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
    """Rename a file or folder that is not what should be there; return its new path.

    Nothing of an earlier one is lost: the new name, `<name>.damaged` or with a number, was free.
    """
    names = (f"{path.name}.damaged{i or ''}" for i in range(10_000))
    free = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    path.rename(free)
    return free


def make_folder(path: Path) -> None:
    """Make a folder of a run folder; a file in its place, or in that of a parent, is set aside."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocked = next(one for one in (path, *path.parents) if os.path.lexists(one))
        _clear(blocked, "a folder")
        path.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Raise `OSError` where no file can be made in a folder."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def make_way(path: Path) -> None:
    """Set aside a folder that stands where a file is to be written."""
    if path.is_dir():
        _clear(path, "a file")


def read_text(path: Path) -> str:
    """Return the text of a file, bytes that are no UTF-8 replaced; "" where no file can be read."""
    try:
        return path.read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; None where there is none, or it is damaged."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError):
        return None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what `write_sealed` wrote; None where there is nothing, or it was changed since."""
    found = read_json(path)
    if not isinstance(found, dict):
        return None
    return found if found.pop("checksum", None) == _checksum(found) else None


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with a checksum, so that no change of it goes unnoticed."""
    plain = json.loads(json.dumps(content))
    write_text(path, json.dumps({**plain, "checksum": _checksum(plain)}, indent=1))


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def remove(path: Path) -> None:
    """Delete a file, if there is one; a folder of its name is set aside."""
    make_way(path)
    path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, lambda file: file.write(text.encode("utf8", errors="replace")))


def write_bytes(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all: `write(file)` fills it, then it takes its place."""
    make_folder(path.parent)
    make_way(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared run folder's results
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _clear(path: Path, wanted: str) -> None:
    aside = set_aside(path)
    warnings.warn(f"{path} is not {wanted}: it was renamed to {aside.name}", stacklevel=4)
