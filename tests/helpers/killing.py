"""Helpers that run a study in separate processes and kill them.

Their program is `tests.helpers.small` by default: the command line with a model that compiles fast.
"""

import csv
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CLI = """
dataset: {name: synthetic, size: 8, classes: 3, train: 96, test: 30}
model: small
train: {steps: 40, batch_size: 16}
reserved: {count: 32}
defenses: [{name: d3, schedule: {steps: 20, batch_size: 16}}]
loop: {log_every: 2, save_every: 4, save_seconds: 0}
"""


def numbers(rows):
    """Return rows without their columns of seconds, which differ from run to run."""
    return [
        {key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows
    ]


def results(folder: Path):
    """Return the rows of a run folder's results.csv without their columns of seconds."""
    with (folder / "results.csv").open() as file:
        return numbers(csv.DictReader(file))


def logged(folder: Path, node: str, text: str) -> bool:
    """Return whether a node's metrics.jsonl contains `text`."""
    path = folder / "nodes" / node / "metrics.jsonl"
    return path.exists() and text in path.read_text()


def unbroken(
    config: Path,
    workdir: Path,
    environment: dict[str, str],
    count: int = 1,
    program: str = "tests.helpers.small",
) -> str:
    """Run a study to its end in `count` cooperating processes and return the output of the first.

    Raises `AssertionError` if a process fails.
    """
    running = start(config, workdir, environment, count, program)
    printed = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * count, printed
    return printed[0][0]


def kill_when(
    moment: Callable[[], object],
    config: Path,
    workdir: Path,
    environment: dict[str, str],
    count: int = 1,
    program: str = "tests.helpers.small",
) -> None:
    """Start a study and kill all its processes with SIGKILL as soon as `moment()` is true.

    Raises `AssertionError` if `moment()` is not true before the first process ends.
    """
    running = start(config, workdir, environment, count, program, output=subprocess.DEVNULL)
    until(moment, running)
    for process in running:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in running] == [-signal.SIGKILL] * count, (
        "it ended before it could be killed"
    )


def until(moment: Callable[[], object], running: list[subprocess.Popen]) -> None:
    """Wait until `moment()` is true.

    Raises `AssertionError` if the first process ends before that, or after 900 seconds.
    """
    deadline = time.monotonic() + 900
    while not moment() and running[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert moment(), "the moment never came"


def start(
    config: Path,
    workdir: Path,
    environment: dict[str, str],
    count: int = 1,
    program: str = "tests.helpers.small",
    more: Sequence[Sequence[str]] = (),
    output: int = subprocess.PIPE,
) -> list[subprocess.Popen]:
    """Start a study in `count` cooperating processes and return them.

    `more` holds the additional arguments of each process. Each process writes its output and its
    errors to a pipe of its own, or to `output`.
    """
    command = [sys.executable, "-m", program, "--config", str(config), "--workdir", str(workdir)]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    words = [
        ["--distributed", f"localhost:{port},{count},{i}"] if count > 1 else []
        for i in range(count)
    ]
    words = [mine + list(extra) for mine, extra in itertools.zip_longest(words, more, fillvalue=())]
    environment = _without_fakes(environment)
    return [
        subprocess.Popen(
            command + mine, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        for mine in words
    ]


def _without_fakes(extra: dict[str, str]) -> dict[str, str]:
    """Return the environment with `extra` and without the XLA flags that make fake devices."""
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | extra
