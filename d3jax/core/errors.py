"""The exceptions of d3jax for mistakes that a user can fix, and helpers that word messages.

A message is one line. It names the wrong value, where the value came from, and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST = 1500
"""The largest number of characters in a message."""


class D3JaxError(Exception):
    """Base class of d3jax's errors, which end a command with a message instead of a traceback.

    The command exits with `exit_code`. A message longer than `LONGEST` is cut in its middle.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= LONGEST:
            return text
        return f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class ConfigError(D3JaxError, ValueError):
    """Raised when a setting of a config, or an argument of a function or command, is invalid."""

    exit_code = 2


class DataError(D3JaxError):
    """Raised when a data set cannot be read or is inconsistent."""

    exit_code = 2


class AttackError(D3JaxError):
    """Raised when an attack with its settings is not possible on the given data set or model."""

    exit_code = 2


class CheckpointError(D3JaxError):
    """Raised when a checkpoint or model file is missing, damaged or of another model."""

    exit_code = 2


class DamagedError(CheckpointError):
    """Raised when a checkpoint cannot be read or does not match its checksum."""


class DivergedError(D3JaxError):
    """Raised when the loss of a train loop becomes NaN or infinite.

    The last checkpoint before the divergence is kept.
    """


class OutOfMemoryError(D3JaxError):
    """Raised when a train loop or a compiled program does not fit the memory of the device."""


class StorageError(D3JaxError):
    """Raised when a file cannot be written because the disk is full or read-only.

    Finished results stay on the disk, and a rerun continues from them.
    """


class StoppedError(D3JaxError):
    """Raised when a signal, such as SIGTERM, asked the study to stop.

    The study saves its state first, so that a rerun continues from there.
    """

    exit_code = 75  # sysexits.h: a temporary failure, try again


def refuse(when: Any, message: str) -> None:
    """Raise `ConfigError` with `message` if `when` is true."""
    if when:
        raise ConfigError(message)


def install(extra: str) -> str:
    """Return the text of a pip command that installs d3jax's optional dependencies `extra`."""
    return f"pip install -e '.[{extra}]' in the checkout of d3jax"


def names(items: Iterable[Any]) -> str:
    """Join items into one string, separated by commas, for a message."""
    return ", ".join(map(str, items))


def shown(value: Any) -> str:
    """Return the value of a setting as text, as messages and labels show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """Return the hint "; did you mean …?" for a mistyped name, or "" if no known name is close.

    The hint names the entry of `known` that is closest to `name`. The hint is ready to be appended
    to a message: "; did you mean 'badnets'?".
    """
    by_lower = {str(one).lower(): str(one) for one in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
