"""Measure the time of a training step and the share of the train loop outside compiled code.

Runs `fit` as a study does, with its default logging and checkpoints, on generated 32×32×3 images.
After one period of checkpoints it waits for every compiled call. The remaining wall time is
Python, logging, fetching, saving and, with `--placement stream`, waiting for batches. Nothing is
compared with other programs.

Command:
    python benchmarks/overhead.py [--width 8] [--batch 128] [--steps 400] [--placement stream]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from d3jax.attacks import BadNetsConfig, make_badnets
from d3jax.config.recipes import LoopConfig, OptimConfig, TrainConfig
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.models import PreActResNet18Config, make_preact_resnet18
from d3jax.results.metric_writer import MetricWriter
from d3jax.runtime import checkpoint, huge_pages
from d3jax.runtime.environment import environment
from d3jax.training import Hooks, fit, victim_loop
from d3jax.training.scan import ScannedStep

IMAGES_PER_EPOCH = 50_000
"""Number of images in CIFAR-10's training set."""


def main() -> None:
    """Measure, print the result and write it to one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--placement",
        choices=["device", "stream"],
        default="device",
        help="where the training images are kept",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    calls, original, defaults = [], ScannedStep.__call__, LoopConfig()

    def timed(repeat, state, data, n):
        began = time.perf_counter()
        out = jax.block_until_ready(original(repeat, state, data, n))
        calls.append((began, time.perf_counter(), n))
        return out

    ScannedStep.__call__ = timed
    data = make_synthetic(SyntheticConfig(size=32, channels=3, train=5000, test=100))
    model, attack = (
        make_preact_resnet18(PreActResNet18Config(width=options.width), data.info),
        make_badnets(BadNetsConfig(), data.info),
    )
    config = TrainConfig(
        steps=defaults.save_every + options.steps, batch_size=options.batch, optimizer=OptimConfig()
    )
    with tempfile.TemporaryDirectory() as folder:
        rolling = checkpoint.Rolling(Path(folder))
        writer = MetricWriter(Path(folder))
        hooks = Hooks(
            log=lambda line, steps: writer.write("", line),
            save=lambda state, lines: rolling.save(int(state.step), state, {"lines": lines}),
            log_every=defaults.log_every,
            save_every=defaults.save_every,
        )
        fit(
            victim_loop(
                jax.random.key(0),
                model,
                data,
                attack,
                config,
                streamed=options.placement == "stream",
            ),
            hooks,
        )
    steady = calls[defaults.save_every :]
    wall = steady[-1][1] - steady[0][0]
    inside, steps = sum(end - began for began, end, _ in steady), sum(n for _, _, n in steady)
    per_step = [(end - began) / n for began, end, n in steady]
    result = {
        "command": " ".join(["benchmarks/overhead.py", *sys.argv[1:]]),
        "steps": steps,
        "step_ms": {
            "min": 1e3 * min(per_step),
            "median": 1e3 * statistics.median(per_step),
            "max": 1e3 * max(per_step),
        },
        "images_per_second": options.batch / statistics.median(per_step),
        "epoch_of_50000_s": IMAGES_PER_EPOCH // options.batch * statistics.median(per_step),
        "wall_images_per_second": options.batch * steps / wall,
        "outside_compiled_code": 1 - inside / wall,
        **environment(),
    }
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    streamed = "_streamed" if options.placement == "stream" else ""
    name = f"overhead_{result['backend']}_w{options.width}_b{options.batch}{streamed}.json"
    (options.out / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    huge_pages.start_again()
    main()
