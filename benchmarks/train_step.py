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
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
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
    wanted = {"ours": ours, "torch": theirs}
    names = {side: defaults(side) if some is None else some for side, some in wanted.items()}
    sides = [side for side in names if names[side]]
    comparison = Comparison(width, batch, steps, images, torch, sides, net)
    with contextlib.closing(comparison):
        variants = [
            f"{side}/{name}"
            for side, some in names.items()
            for name in some
            if comparison.prepare(side, name)
        ]
        times = comparison.times(rounds, variants)
    return comparison.about | {"seconds_a_step": times} | summary(times, batch)


def defaults(side: str) -> tuple[str, ...]:
    """Return the variants of a side that are compared on this machine unless others are named."""
    if side == "ours":
        return OURS[: 1 if on_cpu() else None]
    return THEIRS + (() if on_cpu() else COMPILED)


def on_cpu() -> bool:
    """Return whether this machine has neither an NVIDIA card nor a TPU; starts neither."""
    return not Path("/dev/nvidiactl").exists() and not os.environ.get("TPU_NAME")


class Comparison:
    """The worker processes of both sides, and the variants that they have prepared.

    `about` has the settings, the facts of every prepared variant, and the errors of the others.
    """

    def __init__(
        self,
        width: int,
        batch: int,
        steps: int,
        images: int,
        torch: str,
        sides: Sequence[str] = ("ours", "torch"),
        net: str = NETS[0],
    ):
        steps = steps or (4 if on_cpu() else 50)
        sizes = {"width": width, "batch": batch, "images": images, "steps": steps}
        self._settings = {"net": net, **sizes}
        pythons = {"ours": (sys.executable, "ours.py"), "torch": (torch, "theirs.py")}
        given = _environment()
        self._workers = {
            side: Worker([pythons[side][0], str(HERE / pythons[side][1])], given) for side in sides
        }
        self.about: dict[str, Any] = {
            "command": " ".join(map(os.path.basename, sys.argv)),
            **self._settings,
            "failed": {},
            # A forward and two backward products, with a multiplication and an addition each.
            "flops_an_image": 6 * (macs(width) if net == NETS[0] else WIDE_RESNET_MACS),
            **{side: {} for side in sides},
        }

    def prepare(self, side: str, name: str) -> bool:
        """Prepare a variant, and return whether it can run; `about` says why one cannot."""
        answer = self._workers[side].ask({"prepare": {"name": name, **self._settings}})
        if "ready" in answer:
            self.about[side][name] = answer["ready"]
        else:
            self.about["failed"][f"{side}/{name}"] = answer["error"]
        return "ready" in answer

    def times(self, rounds: int, variants: Sequence[str]) -> dict[str, list[float]]:
        """Run rounds of prepared variants, named `<side>/<name>`; return seconds a step of each."""
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant, seconds in times.items():
                side, name = variant.split("/")
                answer = self._workers[side].ask({"run": name})
                if "seconds" not in answer:
                    raise SystemExit(f"{variant}: {answer['error']}")
                seconds.append(answer["seconds"] / self.about[side][name]["steps"])
        return times

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers.values():
            worker.close()


def _environment() -> dict[str, str]:
    """Return the environment of both sides' processes.

    Both get the huge pages that `python -m d3jax.run` sets, and neither takes all of a GPU's
    memory.
    """
    given = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
    }
    paths = (str(HERE.parent), os.environ.get("PYTHONPATH"))
    return given | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def joined(
    kept: dict[str, Any], about: dict[str, Any], times: dict[str, list[float]]
) -> dict[str, Any]:
    """Return a kept result with the times of more rounds, and with rates and ratios that follow.

    The ratios of a pair of variants are those of the last rounds in which both ran. `kept` may be
    empty. Facts of earlier variants stay.
    """
    before = kept.get("seconds_a_step", {})
    both = before | {name: before.get(name, []) + more for name, more in times.items()}
    facts = {
        name: {**kept.get(name, {}), **value}
        for name, value in about.items()
        if isinstance(value, dict)
    }
    rates = images_a_second(both, about["batch"])
    tflops = {name: rate["median"] * about["flops_an_image"] / 1e12 for name, rate in rates.items()}
    return {
        **kept,
        **about,
        **facts,
        "seconds_a_step": both,
        "images_a_second": rates,
        "ratios": kept.get("ratios", {}) | ratios(times),
        "tflops": tflops,
    }


def summary(times: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """Return images a second of every variant, and ratios of d3jax over PyTorch.

    Each value has its minimum, median and maximum.
    """
    return {"images_a_second": images_a_second(times, batch), "ratios": ratios(times)}


def images_a_second(times: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    """Return the images a second of every variant, from its seconds a step."""
    return {name: spread([batch / value for value in values]) for name, values in times.items()}


def ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the speed of d3jax's variants over PyTorch's, taken within a round."""
    return {
        f"{mine} over {other}": spread(
            [b / a for a, b in zip(times[mine], times[other], strict=True)]
        )
        for mine in times
        for other in times
        if mine.startswith("ours/") and other.startswith("torch/")
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the minimum, the median and the maximum of the values."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


if __name__ == "__main__":
    main()
