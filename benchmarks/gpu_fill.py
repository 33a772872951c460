"""Run the entries of the GPU queue that fit in some seconds, each in a process of its own.

A process ends by itself where no other piece fits. One that takes longer than estimated is ended
when the time is over, and its finished pieces stay. Does not import jax.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpu_pieces import Part, file_name, left, read
from gpu_plan import Entry, all_seconds, next_seconds

GRACE = 8.0
"""Seconds between SIGTERM and SIGKILL: time enough for a study to save a checkpoint."""

Command = Callable[[Entry, argparse.Namespace, float], list[str]]
"""`command(entry, options, seconds)` returns the command of a process that runs an entry."""


def todo(entry: Entry, options: argparse.Namespace, parts: Mapping[str, Part]) -> list[str]:
    """Return the pieces of an entry that are left on the device `options.device`."""
    kept = read(file_name(entry.part, entry.name, options.device), options.out, options.kept)
    return left(parts[entry.part].pieces(settings_of(entry, options)), kept)


def settings_of(entry: Entry, options: argparse.Namespace) -> argparse.Namespace:
    """Return the options of an entry: those of the command, with the entry's name and settings."""
    given = {"name": entry.name, "set": [*options.set, *entry.set]}
    return argparse.Namespace(**vars(options) | given)


def command_of(entry: Entry, options: argparse.Namespace, seconds: float) -> list[str]:
    """Return the command that runs an entry of the queue for at most `seconds`."""
    given = settings_of(entry, options)
    names = ("out", "work", "data", "kept", "device", "width", "size", "steps", "name")
    words = [f"--{name}={getattr(given, name)}" for name in names]
    words += ["--set", *given.set]
    if given.theirs is not None:
        words += ["--theirs", *given.theirs]
    here = str(Path(__file__).with_name("gpu.py"))
    return [sys.executable, here, entry.part, f"--seconds={seconds:.0f}", *words]


def fill(
    queue: Sequence[Entry],
    options: argparse.Namespace,
    parts: Mapping[str, Part],
    command: Command,
) -> int:
    """Run the entries that fit in `options.seconds`, in order; return how many of them failed."""
    ends, failed = time.monotonic() + options.seconds, 0
    for entry in queue:
        pieces = todo(entry, options, parts)
        seconds = ends - time.monotonic() - GRACE
        if not pieces or next_seconds(entry, pieces, options) > seconds:
            continue
        if entry.attack and not options.data.exists():
            continue
        print(f"{entry.label}: {seconds:.0f} s are left", flush=True)
        code = run(command(entry, options, seconds), seconds, environment(options.out))
        failed += bool(code)
        if code != 0:
            how = "cut off" if code is None else f"failed with {code}"
            print(f"{entry.label}: {how}", flush=True)
    return failed


def environment(out: Path) -> dict[str, str]:
    """Return the environment of a part, whose compiled programs are kept under `out`."""
    return {"JAX_COMPILATION_CACHE_DIR": str((out / "cache").resolve()), **os.environ}


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> int | None:
    """Run a command for at most `seconds`; return its exit code, or None if it was cut off.

    The processes that it has started end with it.
    """
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End a process and its group: by SIGTERM, and `GRACE` seconds later by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def show_left(
    queue: Sequence[Entry], options: argparse.Namespace, parts: Mapping[str, Part]
) -> None:
    """Print the pieces that are left of every entry, with estimated seconds."""
    total, tables = 0.0, False
    for entry in queue:
        if pieces := todo(entry, options, parts):
            seconds = all_seconds(entry, pieces, options)
            total, tables = total + seconds, tables or bool(entry.attack)
            print(f"{entry.label}: {seconds:.0f} s for {', '.join(pieces)}")
    print(f"left on {options.device}: about {total:.0f} s")
    if tables and not options.data.exists():
        print(f"tables need {options.data}: python -m d3jax.data cifar10 --out {options.data}")
