"""Signals that ask a study to stop: it saves at the next step that the host sees, and leaves.

A first SIGINT, SIGTERM or SIGUSR1 (what SLURM sends before a time limit) is noted; a second one
ends the process as it would have without this. No jax.
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
    """Note signals instead of dying of them, in the main thread of a program."""
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        _received.append(name)
        _restore(before)
        line = f"\nd3jax: {name}: saving at the next step; a second signal ends at once\n"
        os.write(2, line.encode())  # print may be in the middle of a line

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        _restore(before)
        _received.clear()


def is_stopping() -> bool:
    """Return whether this process was asked to stop."""
    return bool(_received)


def stopped() -> StoppedError:
    """Return the error that ends a study which was asked to stop."""
    why = _received[0] if _received else "a signal to another process"
    return StoppedError(f"stopped by {why}: run the same command again, it continues from here")


def check_stopped() -> None:
    """Raise `StoppedError` where this process was asked to stop."""
    if is_stopping():
        raise stopped()


def _restore(before: dict[int, signal._HANDLER]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
