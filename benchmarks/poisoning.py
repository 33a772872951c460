"""Measure the cost of poisoning in a training step: every attack's step against a clean one's.

The steps run in turns on one device. Triggers are as `init` makes them, because the cost of a step
does not depend on their content. Images are generated, 32×32×3. The goals are a cost under 5 % for
fixed triggers and under 15 % for warps. Input-aware also trains its generator in the step.

Command:
    python benchmarks/poisoning.py [--width 16] [--batch 128] [--steps 10] [--rounds 7]
        [--out benchmarks/results] [ATTACK …]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from rounds import spread, timed

from d3jax.attacks import ATTACKS
from d3jax.config.recipes import TrainConfig
from d3jax.core.types import Attack, Prepared
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.models import PreActResNet18Config, make_preact_resnet18
from d3jax.runtime import huge_pages
from d3jax.runtime.environment import environment
from d3jax.training import victim_loop
from d3jax.training.ensemble import Ensemble


def main() -> None:
    """Measure, print the result and write it to one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "attacks",
        nargs="*",
        metavar="ATTACK",
        help="default: all but released; WaNet and BPP also run with fixed rows",
    )
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    data = make_synthetic(SyntheticConfig(size=32, channels=3, train=5000, test=100))
    chosen = options.attacks or [name for name in ATTACKS if name != "released"]
    cases = {name: ATTACKS[name][1](ATTACKS[name][0](), data.info) for name in chosen}
    for name in ("wanet", "bpp"):
        if name in cases:
            cases[f"{name}, fixed rows"] = ATTACKS[name][1](
                ATTACKS[name][0](rows="fixed"), data.info
            )
    cases["clean"] = ATTACKS["clean"][1](ATTACKS["clean"][0](), data.info)
    rounds = {}
    for name, attack in cases.items():
        print(f"compiles {name}", file=sys.stderr)
        rounds[name] = prepare(attack, data, options)
    seconds = {name: [] for name in rounds}
    for i in range(options.rounds):
        print(f"round {i + 1} of {options.rounds}", file=sys.stderr)
        for name, run in rounds.items():
            seconds[name].append(run())
    costs = {
        name: [mine / clean - 1 for mine, clean in zip(times, seconds["clean"], strict=True)]
        for name, times in seconds.items()
    }
    result = {
        "command": " ".join(["benchmarks/poisoning.py", *sys.argv[1:]]),
        "step_ms": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "cost": {name: spread(found) for name, found in costs.items()},
        **environment(),
    }
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"poisoning_{result['backend']}_w{options.width}_b{options.batch}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def prepare(attack: Attack, data, options: argparse.Namespace) -> Callable[[], float]:
    """Return a function that runs a round of one attack's training steps.

    It returns the seconds of a step. The step is compiled already.
    """
    model, key = (
        make_preact_resnet18(PreActResNet18Config(width=options.width), data.info),
        jax.random.key(0),
    )
    prepared = Prepared(attack.init(key)) if attack.preparation else None
    loop = victim_loop(
        key,
        model,
        data,
        attack,
        TrainConfig(steps=options.steps, batch_size=options.batch),
        prepared,
    )
    members = Ensemble(loop.step, [loop.state], [loop.data])
    return timed(members, options.steps)


if __name__ == "__main__":
    huge_pages.start_again()
    main()
