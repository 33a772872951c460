"""Compare the training step on 1, 2 and 4 fake CPU devices, and in two processes.

Fake devices share the same cores, so their speed is not compared. The table has for each the
largest difference of a parameter after two steps, relative to the largest parameter. It also has
the all-reduces of a step and their bytes, counted in the compiled program. The FLOPs are those of
one device: forward pass, input and weight gradients of its share of the batch. The cost of several
processes is a time: two processes of one device against one process of two.

Command:
    python benchmarks/scaling.py [--width 8] [--batch 128] [--steps 10]
        [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMPARED = 2
"""Steps after which parameters are compared.

They are few, because training multiplies a difference in rounding from step to step.
"""
WIDTHS = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


def main() -> None:
    """Run every case in processes of its own, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--case", nargs=3, metavar=("DEVICES", "WHERE", "FILE"), help=argparse.SUPPRESS
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if options.case:
        run_case(options)
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cases = {f"{n} devices": start(options, [(n, "")], Path(folder)) for n in (1, 2, 4)}
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        pair = [(1, f"localhost:{port},2,{i}") for i in range(2)]
        cases["2 processes of 1 device"] = start(options, pair, Path(folder))
    alone = cases["1 devices"].pop("parameters")
    for case in cases.values():
        mine = case.pop("parameters", alone)
        scale = max(map(abs, alone))
        case["largest_difference"] = (
            max(abs(a - b) for a, b in zip(alone, mine, strict=True)) / scale
        )
    result = {"command": " ".join(map(os.path.basename, sys.argv)), "cases": cases}
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"scaling_cpu_w{options.width}_b{options.batch}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def start(
    options: argparse.Namespace, processes: list[tuple[int, str]], folder: Path
) -> dict[str, Any]:
    """Run the processes of one case and return the report of the first.

    `processes` holds for each its number of devices and its argument of `bring_up`.
    """
    running, reports = [], []
    for i, (devices, where) in enumerate(processes):
        reports.append(folder / f"{devices}-{i}-{len(processes)}.json")
        words = ["--width", options.width, "--batch", options.batch, "--steps", options.steps]
        command = [
            sys.executable,
            __file__,
            *map(str, words),
            "--case",
            str(devices),
            where,
            str(reports[-1]),
        ]
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(HERE.parent),
        }
        running.append(subprocess.Popen(command, env=environment))
    # Wait for all of them, because a process that is left running would keep the port.
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"a case failed: {processes}")
    return json.loads(reports[0].read_text())


def run_case(options: argparse.Namespace) -> None:
    """Run the training steps of one case in this process and write its report."""
    _, where, file = options.case
    from d3jax.runtime import huge_pages

    huge_pages.start_again()
    import jax
    import numpy as np
    from train_step import macs

    from d3jax.runtime.distributed import bring_up

    if where:
        bring_up(where)
    from d3jax.attacks import BadNetsConfig, make_badnets
    from d3jax.config.recipes import TrainConfig
    from d3jax.data import SyntheticConfig, make_synthetic
    from d3jax.models import PreActResNet18Config, make_preact_resnet18
    from d3jax.runtime.environment import environment
    from d3jax.training import victim_loop
    from d3jax.training.ensemble import Ensemble

    data = make_synthetic(SyntheticConfig(size=32, channels=3, train=2000, test=100))
    model = make_preact_resnet18(PreActResNet18Config(width=options.width), data.info)
    config = TrainConfig(steps=options.steps, batch_size=options.batch)
    loop = victim_loop(
        jax.random.key(0), model, data, make_badnets(BadNetsConfig(), data.info), config
    )
    members = Ensemble(loop.step, [loop.state], [loop.data], jax.devices())
    program = members.repeat.program(members.state, members.data, 1)
    state, seconds = members.state, []
    for step in range(1, options.steps + 1):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, members.data))
        seconds.append(time.perf_counter() - started)
        if step == COMPARED:
            # Fetch them before the next call, to which they are donated.
            leaves = jax.device_get(jax.tree.leaves(members.state_of(state, 0).variables))
    report = {
        "step_ms": 1e3 * statistics.median(seconds[COMPARED:]),
        **reduced(program.as_text()),
        "flops_a_device": 6 * macs(options.width) * options.batch // jax.device_count(),
        "parameters": np.concatenate([leaf.ravel() for leaf in leaves]).astype(np.float64).tolist(),
        "environment": environment(),
    }
    Path(file).write_text(json.dumps(report))


def reduced(program: str) -> dict[str, int]:
    """Return the number of all-reduces in a compiled program and the bytes that they sum."""
    found = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    shapes = [shape for kinds in found for shape in re.findall(r"(\w+)\[([\d,]*)\]", kinds)]
    size = sum(
        WIDTHS.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in shapes
    )
    return {"all_reduces_a_step": len(found), "all_reduce_bytes_a_step": size}


if __name__ == "__main__":
    main()
