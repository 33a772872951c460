"""Compare the training steps of d3jax and PyTorch: same net, same batch, same device.

It runs on a CPU, and unchanged on a GPU. Each side is a process of its own. A round runs every
variant of both sides once, for a few steps, and ratios are taken within a round. Images are
generated and rest on the device. Drawing, poisoning, crop, flip and the optimiser are part of the
step.

Command:
    python benchmarks/train_step.py --width 16 --batch 128 [--net wide_resnet]
        [--torch PYTHON_WITH_TORCH] [--rounds 7] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from worker import Worker

HERE = Path(__file__).parent
OURS = ("float32", "bfloat16")
THEIRS = ("eager", "channels_last", "bfloat16")
NETS = ("preact_resnet18", "wide_resnet")
COMPILED = ("compile", "compile_bfloat16", "compile_graphs_bfloat16")


def macs(width: int, size: int = 32, classes: int = 10) -> int:
    """Return the multiplications of one forward pass of PreActResNet18.

    The image has size × size × 3 values. At width 64 there are 555,422,720.
    """
    total, inside = size * size * 9 * 3 * width, width
    for stage in range(4):
        out, size = width << stage, size // (2 if stage else 1)
        total += size * size * out * (9 * inside + 27 * out) + (
            size * size * inside * out if stage else 0
        )
        inside = out
    return total + inside * classes


WIDE_RESNET_MACS = sum(
    (size * size) * (9 * inside * out + 9 * out * out + (inside * out if inside != out else 0))
    for size, inside, out in (
        (32, 16, 16),
        (32, 16, 16),
        (16, 16, 32),
        (16, 32, 32),
        (8, 32, 64),
        (8, 64, 64),
    )
) + (32 * 32 * 27 * 16 + 64 * 10)
"""Multiplications of one forward pass of WideResNet-16-1: 32×32×3 values, 10 classes."""


def main() -> None:
    """Measure, print the ratios and write the result to one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=NETS, default=NETS[0])
    parser.add_argument("--width", type=int, default=16, help="of preact_resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--steps", type=int, default=0, help="steps in a round (0: 4 on CPU, 50 elsewhere)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--torch", default=sys.executable, help="Python interpreter that has torch")
    parser.add_argument("--ours", nargs="*", help="default: float32, and except on CPU bfloat16")
    parser.add_argument(
        "--theirs", nargs="*", help="default: all, on CPU all but the compiled ones"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    result = measure(**{name: value for name, value in vars(options).items() if name != "out"})
    print(
        json.dumps(
            {name: result[name] for name in ("images_a_second", "ratios", "failed")}, indent=1
        )
    )
    device = next(iter(result["ours"].values()))["environment"]["device"].replace(" ", "_").lower()
    options.out.mkdir(parents=True, exist_ok=True)
    net = f"w{options.width}" if options.net == NETS[0] else "wrn-16-1"
    path = options.out / f"train_step_{device}_{net}_b{options.batch}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print(path)


def measure(
    width: int,
    batch: int,
    steps: int,
    rounds: int,
    images: int,
    torch: str,
    ours: list[str] | None,
    theirs: list[str] | None,
    net: str = NETS[0],
) -> dict[str, Any]:
    """Prepare both sides, run `rounds` rounds and return times, rates and ratios.

    A variant that cannot be prepared is named under `failed`.
    """
    # Both sides get the huge pages that `python -m d3jax.run` sets, and neither may take all of a
    # GPU's memory.
    environment = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))
    )
    cpu = not Path("/dev/nvidiactl").exists() and not os.environ.get("TPU_NAME")
    settings = {
        "net": net,
        "width": width,
        "batch": batch,
        "images": images,
        "steps": steps or (4 if cpu else 50),
    }
    wanted = {
        "ours": (
            [sys.executable, str(HERE / "ours.py")],
            OURS[: 1 if cpu else None] if ours is None else ours,
        ),
        "torch": (
            [torch, str(HERE / "theirs.py")],
            THEIRS + (() if cpu else COMPILED) if theirs is None else theirs,
        ),
    }
    workers = {
        side: Worker(command, environment) for side, (command, names) in wanted.items() if names
    }
    result: dict[str, Any] = {
        "command": " ".join(map(os.path.basename, sys.argv)),
        **settings,
        "failed": {},
    }
    # A forward and two backward products, with a multiplication and an addition each.
    result["flops_an_image"] = 6 * (macs(width) if net == NETS[0] else WIDE_RESNET_MACS)
    times: dict[str, list[float]] = {}
    for side, worker in workers.items():
        result[side] = {}
        for name in wanted[side][1]:
            answer = worker.ask({"prepare": {"name": name, **settings}})
            if "ready" in answer:
                result[side][name] = answer["ready"]
                times[f"{side}/{name}"] = []
            else:
                result["failed"][f"{side}/{name}"] = answer["error"]
    for _ in range(rounds):
        for variant, seconds in times.items():
            side, name = variant.split("/")
            answer = workers[side].ask({"run": name})
            if "seconds" not in answer:
                raise SystemExit(f"{variant}: {answer['error']}")
            seconds.append(answer["seconds"] / result[side][name]["steps"])
    for worker in workers.values():
        worker.close()
    return result | {"seconds_a_step": times} | summary(times, batch)


def summary(times: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """Return images a second of every variant, and ratios of d3jax over PyTorch.

    Ratios are taken within a round. Each value has its minimum, median and maximum.
    """

    def spread(values):
        return {
            "min": min(values),
            "median": statistics.median(values),
            "max": max(values),
        }

    rates = {name: spread([batch / value for value in values]) for name, values in times.items()}
    ratios = {
        f"{mine} over {other}": spread(
            [b / a for a, b in zip(times[mine], times[other], strict=True)]
        )
        for mine in times
        for other in times
        if mine.startswith("ours/") and other.startswith("torch/")
    }
    return {"images_a_second": rates, "ratios": ratios}


if __name__ == "__main__":
    main()
