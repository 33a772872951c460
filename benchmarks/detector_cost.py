"""Measure what detectors of triggered inputs cost, as multiples of one forward pass.

    python benchmarks/detector_cost.py [--victim wrn/badnets-10/0] [--data cifar10.npz]

Prepares every detector on 2,500 clean images, and then scores batches of 1 and of 64 images. Each
round times the forward pass and all detectors once, so that they see the same load. Prints a table
of medians: seconds of the preparation, milliseconds of a batch, and its multiple of the forward
pass of the same batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d3jax.core.images import as_float
from d3jax.core.types import Split
from d3jax.defenses import prepare_detector
from d3jax.defenses.input_detection import INPUT_DETECTORS
from d3jax.defenses.input_detection.common import logits_of
from d3jax.examine import Given, read_given

BATCHES = (1, 64)
"""The numbers of images in a batch."""


def prepared(given: Given) -> tuple[dict[str, Callable[[np.ndarray], Any]], dict[str, float]]:
    """Prepare every detector; return their scoring functions and the seconds of preparation."""
    assert isinstance(given.clean, Split)
    scoring, seconds = {}, {}
    for name, (config, _) in INPUT_DETECTORS.items():
        began = time.perf_counter()
        key = jax.random.key(0)
        detector = prepare_detector(
            config(), given.info, key, given.model, given.variables, given.clean
        )
        seconds[name] = time.perf_counter() - began
        scoring[name] = detector.score
        print(f"{name}: prepared in {seconds[name]:.1f} s", file=sys.stderr, flush=True)
    return scoring, seconds


def timed(
    functions: dict[str, Callable[[np.ndarray], Any]], images: np.ndarray, rounds: int
) -> dict[str, float]:
    """Return the median seconds of a call of each function on a batch, over interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function(images)  # compiles
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function(images))
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in found.items()}


def table(seconds: dict[str, float], times: dict[int, dict[str, float]]) -> str:
    """Return the Markdown table of preparation, batches and multiples of the forward pass."""
    head = ["detector", "preparation (s)"]
    for size in times:
        head += [f"batch of {size} (ms)", "forward passes"]
    lines = [head, ["---"] * len(head)]
    for name in next(iter(times.values())):
        cells = [name, f"{seconds[name]:.1f}" if name in seconds else "–"]
        for measured in times.values():
            ratio = measured[name] / measured["forward"]
            cells += [f"{1000 * measured[name]:.1f}", f"{ratio:.1f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all detectors on one victim of the shelf and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--victim", default="wrn/badnets-10/0", help="a victim of the shelf")
    parser.add_argument("--data", type=Path, default=Path("cifar10.npz"), help="clean images")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    given = read_given(f"victim:{options.victim}", options.data)
    assert given.clean is not None
    scoring, seconds = prepared(given)
    forward = {"forward": lambda images: logits_of(given.model, given.variables, as_float(images))}
    images = np.asarray(given.clean.images)
    times = {size: timed(forward | scoring, images[:size], options.rounds) for size in BATCHES}
    print(f"{options.victim}, {jax.devices()[0].platform}, medians of {options.rounds} rounds\n")
    print(table(seconds, times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
