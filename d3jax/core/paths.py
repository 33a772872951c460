"""Paths that users give: one rule for all of them."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigError

LONGEST = 255
"""Bytes of a file's name that file systems allow."""


def user_path(text: str | os.PathLike[str], name: str = "path") -> Path:
    """Return the path that `text` means; a ~ or ~user at its beginning is a home folder.

    Raises `ConfigError` that begins with `name` where there is no such user, or no file system
    could hold such a name.
    """
    text = os.fspath(text)
    if "\0" in text:
        raise ConfigError(f"{name}: {text!r} holds a NUL, which no path can")
    if any(len(os.fsencode(part)) > LONGEST for part in Path(text).parts):
        raise ConfigError(
            f"{name}: {text[:40]!r}… has a part of more than {LONGEST} bytes, which no file is called"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name}: {text!r}: there is no user of that name here") from error
