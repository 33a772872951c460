"""Compare the time of whole studies between two checkouts of d3jax, in turns.

Each study runs as a new process with a new run folder, in one checkout and then in the other. The
ratio is taken within a round. The compile cache is new too, so that every run compiles. Nothing is
compared with published numbers.

Commands, whose output is benchmarks/results/end_to_end_cpu.txt:
    python benchmarks/end_to_end.py BEFORE AFTER experiments/quickstart.yaml
    python benchmarks/end_to_end.py BEFORE AFTER benchmarks/studies/*_short.yaml \\
        --dataset.path cifar10.npz

BEFORE and AFTER are folders that hold a checkout. Both use the packages of this Python. Settings of
a study may follow, as for `d3jax.run`; paths in them must be absolute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def seconds_of(checkout: Path, config: Path, settings: Sequence[str]) -> float:
    """Run a study with the package of a checkout; return its seconds."""
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "D3JAX_CACHE": f"{name}/cache"}
        run = f"{name}/run"
        words = [sys.executable, "-m", "d3jax.run", "--config", str(config), "--workdir", run]
        words += settings
        began = time.monotonic()
        done = subprocess.run(
            words, cwd=name, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{checkout}: {config}: {done.stderr or done.stdout}")
    return seconds


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout."""
    words = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def main(argv: Sequence[str] | None = None) -> None:
    """Run every study in turns in both checkouts; print a table of medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    options, settings = parser.parse_known_args(argv)
    checkouts = {name: getattr(options, name).resolve() for name in ("before", "after")}
    print("No published number stands beside these.")
    print(", ".join(f"{name}: {commit_of(path)}" for name, path in checkouts.items()), "\n")
    print("| study | before, s | after, s | after / before: min, median, max |")
    print("| --- | --- | --- | --- |")
    for config in options.configs:
        found: dict[str, list[float]] = {name: [] for name in checkouts}
        for _ in range(options.rounds):
            for name, path in checkouts.items():
                found[name].append(seconds_of(path, config.resolve(), settings))
        ratios = sorted(b / a for a, b in zip(found["before"], found["after"], strict=True))
        shown = [f"{statistics.median(found[name]):.0f}" for name in checkouts]
        spread = f"{ratios[0]:.2f}, {statistics.median(ratios):.2f}, {ratios[-1]:.2f}"
        print(f"| {config.stem} | {shown[0]} | {shown[1]} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
