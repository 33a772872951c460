"""Errors that are the user's to fix, and the words of their messages: one line, what, where from, and what would do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST = 1500
"""Letters of a message."""


class D3JaxError(Exception):
    """Ends `python -m d3jax.run` with its `exit_code` and its message, without a traceback.

    A message that quotes more than anybody reads is cut in its middle.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= LONGEST:
            return text
        return f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class ConfigError(D3JaxError, ValueError):
    """A configuration that cannot be used."""

    exit_code = 2


class DataError(D3JaxError):
    """A data set cannot be read or contradicts itself."""

    exit_code = 2


class AttackError(D3JaxError):
    """An attack that this data set does not allow."""

    exit_code = 2


class CheckpointError(D3JaxError):
    """A checkpoint is missing, damaged or of another model."""

    exit_code = 2


class DamagedError(CheckpointError):
    """A checkpoint cannot be read or does not match its checksum."""


class DivergedError(D3JaxError):
    """A loss became NaN or infinite; the last checkpoint before it is kept."""


class OutOfMemoryError(D3JaxError):
    """A program does not fit the device's memory."""


class StorageError(D3JaxError):
    """A disk is full, read-only or out of reach. What is finished stays; a rerun continues."""


class StoppedError(D3JaxError):
    """A signal asked the study to stop, and it did so at a place from which a rerun continues."""

    exit_code = 75  # sysexits.h: a temporary failure, try again


def refuse(when: Any, message: str) -> None:
    """Raise `ConfigError` with `message` if `when` holds."""
    if when:
        raise ConfigError(message)


def install(extra: str) -> str:
    """Return how to install what an optional part of d3jax needs."""
    return f"pip install -e '.[{extra}]' in the checkout of d3jax"


def names(items: Iterable[Any]) -> str:
    """Return names in a row."""
    return ", ".join(map(str, items))


def shown(value: Any) -> str:
    """Return a setting's value as messages and labels show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """Return a hint at the nearest known name, or nothing."""
    by_lower = {str(one).lower(): str(one) for one in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
