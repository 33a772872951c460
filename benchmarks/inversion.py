"""Compare trigger inversion for all classes at once with a loop over the classes.

The variants run in turns on one device. Weights are random and images are generated, 32×32×3,
because the cost of a step does not depend on them. Steps are compiled before they are timed.

Command:
    python benchmarks/inversion.py [--width 8] [--classes 10] [--batch 32] [--steps 5]
        [--rounds 7] [--out benchmarks/results]
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
    """Measure, print the result and write it to one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--steps", type=int, default=5, help="calls of the compiled step in a round"
    )
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
    """Return milliseconds a step for all classes, half of them and one, and the speed-up.

    The speed-up is that of all classes at once over one class after another.
    """
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
    """Return a function that runs a round of inversion for `count` classes.

    It returns the seconds of a step. The step is compiled already.
    """
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
