"""Handling of signals that ask a study to stop: it saves a checkpoint, then ends.

The checkpoint is saved at the next step that the host sees. The first SIGINT, SIGTERM or SIGUSR1 is
only recorded. (SLURM sends SIGUSR1 before a time limit.) A second signal ends the process. Does not
import jax.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
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

    A second one ends the process at once, also while a program is compiled. Outside the main thread
    the context manager has no effect, because Python handles signals in the main thread only.
    """
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours,), daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        theirs.close()  # ends the thread
        _received.clear()


def _note(number: int, frame: FrameType | None) -> None:
    """Record a signal. Python calls this in the main thread, when no compiled code runs there."""
    _received.append(signal.Signals(number).name)


def _watch(wakeup: socket.socket) -> None:
    """Answer signals as they arrive: the first with a line, the second by ending the process."""
    known = False
    with wakeup:
        while numbers := wakeup.recv(1):
            if numbers[0] not in SIGNALS:
                continue
            if known:
                os._exit(128 + numbers[0])  # as a shell reports the end by this signal
            known, name = True, signal.Signals(numbers[0]).name
            text = "saving at the next step; a second signal ends the study at once"
            os.write(2, f"\nd3jax: {name}: {text}\n".encode())


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
