"""Exceptions for mistakes that the user can fix, and helpers that word their messages.

A message is one line. It names the wrong value, where the value came from, and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST = 1500
"""The largest number of characters in a message."""


class D3JaxError(Exception):
    """Base class of the errors that end a command with a message instead of a traceback.

    The command exits with `exit_code`. A message longer than `LONGEST` is cut in its middle.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= LONGEST:
            return text
        return f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class ConfigError(D3JaxError, ValueError):
    """Raised when a configuration cannot be used."""

    exit_code = 2


class DataError(D3JaxError):
    """Raised when a data set cannot be read or is inconsistent."""

    exit_code = 2


class AttackError(D3JaxError):
    """Raised when an attack is not possible on the given data set."""

    exit_code = 2


class CheckpointError(D3JaxError):
    """Raised when a checkpoint is missing, is damaged or belongs to another model."""

    exit_code = 2


class DamagedError(CheckpointError):
    """Raised when a checkpoint cannot be read or does not match its checksum."""


class DivergedError(D3JaxError):
    """Raised when a loss becomes NaN or infinite.

    The last checkpoint before the divergence is kept.
    """


class OutOfMemoryError(D3JaxError):
    """Raised when a program does not fit the memory of the device."""


class StorageError(D3JaxError):
    """Raised when a disk is full, read-only or out of reach.

    Finished results stay on the disk, and a rerun continues from them.
    """


class StoppedError(D3JaxError):
    """Raised when a signal asked the study to stop.

    The study saves its state first, so that a rerun continues from there.
    """

    exit_code = 75  # sysexits.h: a temporary failure, try again


def refuse(when: Any, message: str) -> None:
    """Raise `ConfigError` with `message` if `when` is true."""
    if when:
        raise ConfigError(message)


def install(extra: str) -> str:
    """Return the pip command that installs the optional dependencies called `extra`."""
    return f"pip install -e '.[{extra}]' in the checkout of d3jax"


def names(items: Iterable[Any]) -> str:
    """Return the items as one string, separated by commas."""
    return ", ".join(map(str, items))


def shown(value: Any) -> str:
    """Return the value of a setting as text, in the form that messages and labels use."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """Return a hint at the known name closest to `name`, or "" if none is close.

    The hint is ready to be appended to a message: "; did you mean 'badnets'?".
    """
    by_lower = {str(one).lower(): str(one) for one in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
