"""Handling of signals that ask a study to stop: it saves a checkpoint, then ends.

The checkpoint is saved at the next step that the host sees. The first SIGINT, SIGTERM or SIGUSR1 is
only recorded. (SLURM sends SIGUSR1 before a time limit.) A second signal has its usual effect. Does
not import jax.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ..core.errors import StoppedError

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]

_received: list[str] = []


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Return a context manager in which the first SIGINT, SIGTERM or SIGUSR1 is only recorded.

    A second one ends the process. Outside the main thread the context manager has no effect,
    because Python handles signals in the main thread only.
    """
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        _received.append(name)
        _restore(before)
        line = f"\nd3jax: {name}: saving at the next step; a second signal ends the study at once\n"
        os.write(2, line.encode())  # print is not safe here: the signal may interrupt a print

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        _restore(before)
        _received.clear()


def is_stopping() -> bool:
    """Return whether this process has received a signal that asks the study to stop."""
    return bool(_received)


def stopped() -> StoppedError:
    """Return the `StoppedError` that ends a study after a stop signal to one of its processes."""
    why = _received[0] if _received else "a signal to another process"
    return StoppedError(f"stopped by {why}: run the same command again, it continues from here")


def check_stopped() -> None:
    """Raise `StoppedError` if this process has received a signal that asks it to stop."""
    if is_stopping():
        raise stopped()


def _restore(before: dict[int, signal._HANDLER]) -> None:
    """Set the process's signal handlers back to those in `before`, given by signal number."""
    for number, handler in before.items():
        signal.signal(number, handler)
