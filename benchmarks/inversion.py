"""Compare trigger inversion for all classes at once with a loop over them, and with PyTorch.

The variants run in turns on one device. Weights are random and images are generated, 32×32×3,
because the cost of a step does not depend on them. Steps are compiled before they are timed.
PyTorch has the same net, and all classes on the batch axis too.

Command:
    python benchmarks/inversion.py [--width 8] [--classes 10] [--batch 32] [--steps 5]
        [--rounds 7] [--torch PYTHON_WITH_TORCH] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rounds import spread, timed
from worker import Worker

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
    parser.add_argument("--torch", default="", help="Python interpreter that has torch")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    settings = {
        name: getattr(options, name)
        for name in ("width", "classes", "batch", "steps", "rounds", "torch")
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


def measure(
    *, width: int, classes: int, batch: int, steps: int, rounds: int, torch: str
) -> dict[str, Any]:
    """Return milliseconds a step for all classes, half of them and one, and the speed-ups.

    The speed-up is that of all classes at once over one class after another, and over PyTorch with
    all classes at once.
    """
    runs: dict[str, Callable[[], float]] = {
        f"{count} of {classes}": prepare(count, width, classes, batch, steps)
        for count in (classes, classes // 2, 1)
    }
    settings = {"width": width, "classes": classes, "labels": classes, "batch": batch}
    with contextlib.ExitStack() as stack:
        for variant in ("eager", "channels_last") if torch else ():
            worker = Worker([torch, str(Path(__file__).parent / "theirs_inversion.py")], TORCH)
            stack.callback(worker.close)
            asked(worker, {"prepare": {**settings, "name": variant, "steps": steps}})
            runs[f"torch {variant}"] = functools.partial(seconds_of, worker, variant)
        seconds = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                seconds[name].append(run())
    together, one = seconds[f"{classes} of {classes}"], seconds[f"1 of {classes}"]
    result = {
        "step_ms": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "speedup": spread([classes * a / b for a, b in zip(one, together, strict=True)]),
    }
    for name, times in seconds.items():
        if name.startswith("torch"):
            ratios = [theirs / ours for theirs, ours in zip(times, together, strict=True)]
            result[f"speed over {name}"] = spread(ratios)
    return result


TORCH = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
"""The environment of PyTorch's process: it uses all cores, as d3jax does."""


def asked(worker: Worker, order: dict[str, Any]) -> dict[str, Any]:
    """Return a worker's answer; raise `RuntimeError` if it is an error."""
    answer = worker.ask(order)
    if "error" in answer:
        raise RuntimeError(f"{worker.process.args}: {answer['error']}")
    return answer


def seconds_of(worker: Worker, name: str) -> float:
    """Return the seconds a step of one round of a worker's variant."""
    return asked(worker, {"run": name})["seconds"]


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
