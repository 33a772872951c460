"""Measure the cost of evolution updates: members of a sweep together against one run alone.

It also measures the evaluation after an update. The variants run in turns on one device. Weights
are random and images are generated, 28×28×1, because the cost of a step does not depend on them.
Programs are compiled before they are timed.

Command:
    python benchmarks/lineages.py [--width 8] [--members 2 4] [--steps 5] [--rounds 7]
        [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
from rounds import spread, timed

from d3jax.attacks import BadNetsConfig, make_badnets
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.evolution.config import EvolutionConfig
from d3jax.evolution.lr_schedules import LRScheduleConfig
from d3jax.evolution.updates import evolution_loop
from d3jax.metrics.attack_success import make_evaluate
from d3jax.models import PreActResNet18Config, make_preact_resnet18
from d3jax.runtime import huge_pages
from d3jax.runtime.environment import environment
from d3jax.training.ensemble import Ensemble

UPDATE = 56
"""Steps in an update of the experiments on Fashion-MNIST: two passes over 3,600 images."""
MEASURED = 1000
"""Number of test images."""


def main() -> None:
    """Measure, print the result and write it to one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--members", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=5, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("width", "members", "steps", "rounds")}
    result = {
        "command": " ".join(["benchmarks/lineages.py", *sys.argv[1:]]),
        **measure(**settings),
        **environment(),
    }
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"lineages_{result['backend']}_w{options.width}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def measure(*, width: int, members: list[int], steps: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds a step of one member, alone and together, and the speed-ups.

    The result also has the seconds of an update of one run alone, and of its evaluation.
    """
    data = make_synthetic(
        SyntheticConfig(size=28, channels=1, classes=10, train=8000, test=MEASURED)
    )
    model, attack = (
        make_preact_resnet18(PreActResNet18Config(width=width), data.info),
        make_badnets(BadNetsConfig(), data.info),
    )
    variables, trigger = model.init(jax.random.key(0)), attack.init(jax.random.key(1))

    def config(i):
        return EvolutionConfig(
            updates=2,
            epochs=2,
            drift={"rotation": 4.0},
            strategy=LRScheduleConfig(lr=0.01 * (i + 1)),
        )

    loops = [
        evolution_loop(
            jax.random.key(i),
            model,
            variables,
            None,
            data.train,
            attack,
            trigger,
            config(i),
            data.info,
        )
        for i in range(max(members))
    ]

    def together(mine):
        return Ensemble(
            loops[0].step,
            [loop.state for loop in mine],
            [loop.data for loop in mine],
            steps_per_call=1,
        )

    runs = {count: timed(together(loops[:count]), steps) for count in (1, *members)}
    evaluate = make_evaluate(model, attack, data.info.num_classes)
    evaluate(variables, trigger, data.test)
    seconds: dict[int, list[float]] = {count: [] for count in runs}
    measuring = []
    for _ in range(rounds):
        for count, run in runs.items():
            seconds[count].append(run() / count)
        began = time.perf_counter()
        evaluate(variables, trigger, data.test)
        measuring.append(time.perf_counter() - began)
    ratios = {
        count: [alone / mine for alone, mine in zip(seconds[1], seconds[count], strict=True)]
        for count in members
    }
    alone = statistics.median(seconds[1])
    return {
        "step_ms_a_member": {
            count: 1e3 * statistics.median(times) for count, times in seconds.items()
        },
        "speedup": {count: spread(found) for count, found in ratios.items()},
        "update_s": {
            "steps": UPDATE * alone,
            "clean and triggered test images": statistics.median(measuring),
        },
    }


if __name__ == "__main__":
    huge_pages.start_again()
    main()
