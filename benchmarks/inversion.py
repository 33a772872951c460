"""What a step of trigger inversion costs for all classes at once, against a loop over the classes; rounds in turns, one device.

Weights are random and images generated 32×32×3: a step costs the same whatever is in them. Steps are compiled beforehand.

Command: python benchmarks/inversion.py [--width 8] [--classes 10] [--batch 32] [--steps 5] [--rounds 7] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rounds import spread, timed

from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.inversion import InversionConfig, inversion_loop
from d3jax.models import PreActResNet18Config, make_preact_resnet18
from d3jax.runtime import huge_pages
from d3jax.runtime.environment import environment
from d3jax.training.ensemble import Ensemble


def main() -> None:
    """Measures, prints and writes one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="calls of the compiled step a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    settings = {
        name: getattr(options, name) for name in ("width", "classes", "batch", "steps", "rounds")
    }
    result = {
        "command": " ".join(["benchmarks/inversion.py", *sys.argv[1:]]),
        **measure(**settings),
        **environment(),
    }
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"inversion_{result['backend']}_w{options.width}_k{options.classes}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def measure(*, width: int, classes: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a step for all classes, for half of them and for one, and how much faster all are at once."""
    counts = [classes, classes // 2, 1]
    runs = {count: prepare(count, width, classes, batch, steps) for count in counts}
    seconds = {count: [] for count in counts}
    for _ in range(rounds):
        for count, run in runs.items():
            seconds[count].append(run())
    speedups = [
        classes * one / together for one, together in zip(seconds[1], seconds[classes], strict=True)
    ]
    return {
        "step_ms": {
            f"{count} of {classes}": 1e3 * statistics.median(times)
            for count, times in seconds.items()
        },
        "speedup": spread(speedups),
    }


def prepare(count: int, width: int, classes: int, batch: int, steps: int) -> Callable[[], float]:
    """The compiled step for `count` classes, as a function that runs a round and returns the seconds of a step."""
    data = make_synthetic(
        SyntheticConfig(size=32, channels=3, classes=classes, train=1000, test=classes)
    )
    model, key = (
        make_preact_resnet18(PreActResNet18Config(width=width), data.info),
        jax.random.key(0),
    )
    config = InversionConfig(batch_size=batch, stop=0)
    loop = inversion_loop(key, model, model.init(key), data.train, config, np.arange(count))
    members = Ensemble(loop.step, [loop.state], [loop.data])
    return timed(members, steps, members.repeat.steps_per_call)


if __name__ == "__main__":
    huge_pages.start_again()
    main()
