"""Running a study in a process of its own, and killing it."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def numbers(rows):
    """Rows without what differs from run to run."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def results(folder: Path):
    """results.csv of a run folder, without times."""
    with (folder / "results.csv").open() as file:
        return numbers(csv.DictReader(file))


def logged(folder: Path, text: str) -> bool:
    """Whether metrics.jsonl has come to `text`."""
    path = folder / "metrics.jsonl"
    return path.exists() and text in path.read_text()


def unbroken(config: Path, workdir: Path, environment: dict[str, str]) -> str:
    """Runs a study to its end and returns what it printed."""
    done = subprocess.run(_command(config, workdir), env=_without_fakes(environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_when(
    moment: Callable[[], object], config: Path, workdir: Path, environment: dict[str, str], patience: float = 300
) -> None:
    """Starts a study and kills it with SIGKILL as soon as `moment()` is true."""
    process = subprocess.Popen(
        _command(config, workdir), env=_without_fakes(environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + patience
    while not moment() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert moment(), "the moment never came"


def _command(config: Path, workdir: Path) -> list[str]:
    return [sys.executable, "-m", "d3jax.run", "--config", str(config), "--workdir", str(workdir)]


def _without_fakes(extra: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | extra
