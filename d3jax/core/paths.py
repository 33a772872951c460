"""The function `user_path`, which turns a path given by the user into a `Path`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ConfigError

LONGEST = 255
"""The largest number of bytes that file systems allow in a file name."""


def user_path(text: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a path given as text as a `Path`, with ~, ~user and environment variables replaced.

    ~ is replaced at the start only, $NAME and ${NAME} everywhere. Raises a `ConfigError` that
    begins with `name` if there is no such user or variable, or if no file system allows such a
    file name.
    """
    text = os.fspath(text)
    if "\0" in text:
        raise ConfigError(f"{name}: {text!r} holds a NUL character, which no path can contain")
    text = os.path.expandvars(text)
    if unset := re.search(r"\$(\w+|\{\w+\})", text):
        raise ConfigError(f"{name}: {text!r}: the environment has no variable {unset[1]}")
    if any(len(os.fsencode(part)) > LONGEST for part in Path(text).parts):
        raise ConfigError(
            f"{name}: {text[:40]!r}… has a part of more than {LONGEST} bytes, which is too long "
            "for a file name"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name}: {text!r}: there is no user of that name here") from error
