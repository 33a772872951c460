"""Observation of commands of d3jax: exit code, output, seconds and memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).parents[1]
SMALL = [sys.executable, "-m", "tests.helpers.small"]
"""The command of d3jax with a net that compiles in a second."""


class Observed(NamedTuple):
    """The end of a command.

    `code` is its exit code, which is negative after a signal. `peak` is its largest memory in MiB.
    """

    code: int
    seconds: float
    peak: float
    output: str

    @property
    def traceback(self) -> bool:
        """Whether the output has a Python traceback."""
        return "Traceback (most recent call last)" in self.output

    @property
    def messages(self) -> list[str]:
        """The lines of the output that are error messages of d3jax."""
        return [line for line in self.output.splitlines() if line.startswith("d3jax: ")]


def observe(
    words: Sequence[str],
    limit: float = 120,
    environment: Mapping[str, str] = {},
    meanwhile: Callable[[subprocess.Popen], object] = lambda process: None,
) -> Observed:
    """Run a command in this checkout; kill it after `limit` seconds.

    `meanwhile` may disturb the process. It must use `has_ended` and `kill` for this, because
    Popen's own methods take its exit code.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            words,
            cwd=TREE,
            env={**inherited, "COLUMNS": "120", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        meanwhile(process)
        peak = 0.0
        while not has_ended(process) and time.monotonic() - started < limit:
            peak = max(peak, _peak(process))
            time.sleep(0.01)
        if not has_ended(process):
            kill(process)
        process.wait()
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read().decode("utf8", errors="replace")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return Observed(process.returncode, seconds, peak, plain)


def _peak(process: subprocess.Popen) -> float:
    """Return the largest memory of a process so far, in MiB; 0 once it has ended.

    `ru_maxrss` does not serve, because it counts the memory of the process that started this one.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def has_ended(process: subprocess.Popen) -> bool:
    """Return whether a process that `observe` started has ended, without taking its exit code."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(process: subprocess.Popen) -> None:
    """Send SIGKILL to a process that `observe` started. The process may have ended."""
    os.kill(process.pid, signal.SIGKILL)
