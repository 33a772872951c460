"""GPU benchmarks in parts: each writes one JSON file, piece by piece.

They need jax, flax, optax, orbax, numpy and this folder, and PyTorch for the comparison. They need
no network. A part whose file is complete is skipped. One that was cut off continues with the pieces
that its file lacks. Tables continue within a piece, if the folder of `--work` still exists.

`fill` runs what fits in `--seconds`, in the order of benchmarks/gpu_plan.py, and `left` only prints
what is left.

Data: python -m d3jax.data cifar10 --out cifar10.npz

    python benchmarks/gpu.py fill --seconds 540 [--out OUT] [--work DIR] [--data cifar10.npz]
    python benchmarks/gpu.py left [--device nvidia_h200]
    python benchmarks/gpu.py [PART …] [--out OUT] [--work DIR] [--data cifar10.npz]
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

BEGAN = time.monotonic()
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import gpu_fill
from gpu_parts import PARTS
from gpu_pieces import file_name, is_complete, read, run
from gpu_plan import QUEUE, cost, entry_of

from d3jax.runtime.environment import environment

ASK = "import jax; print(jax.devices()[0].device_kind)"
"""A program that prints the device's name. This process leaves the device to those of the parts."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"fill, left or some of {', '.join(PARTS)} (all)")
    add("--seconds", type=float, default=math.inf, help="time for all, in fill and in a part")
    add("--out", type=Path, default=HERE / "results")
    add("--kept", type=Path, help="folder of earlier results (fill: benchmarks/results)")
    add("--work", type=Path, default=Path("runs/gpu"))
    add("--data", type=Path, default=Path("cifar10.npz"))
    add("--device", default="", help="in fill and left: its name in file names (default: ask jax)")
    add("--width", type=int, default=64, help="width of the net (64: the published net)")
    add("--size", type=int, default=8192, help="size of the matrices in ceilings")
    add("--steps", type=int, default=0, help="steps in a round (0: each part's own number)")
    add(
        "--theirs",
        nargs="*",
        metavar="VARIANT",
        help="PyTorch variants in throughput (default: all; compiling them takes minutes)",
    )
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the tables' studies")
    add(
        "--name",
        default="",
        help="added to file names, to run a part again or with other settings",
    )
    return parser


def main() -> int:
    """Run the chosen parts, each in a process of its own, or those of the queue that fit.

    A part that fails keeps its finished pieces. The exit code is then 1.
    """
    options = parser().parse_args()
    if options.parts in (["fill"], ["left"]):
        return fill(options)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser().error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if len(options.parts) == 1:
        return run_part(options.parts[0], options)
    flags = [word for word in sys.argv[1:] if word not in options.parts]
    codes = [
        subprocess.run([sys.executable, __file__, name, *flags], check=False).returncode
        for name in options.parts or PARTS
    ]
    return 1 if any(codes) else 0


def fill(options: argparse.Namespace) -> int:
    """Run what fits of the queue, unless only what is left is asked for; print what is left."""
    options.kept = options.kept or HERE / "results"
    options.device = options.device or device_name(ask())
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    if options.parts == ["fill"]:
        options.seconds -= time.monotonic() - BEGAN
        with _ended_by_sigterm():
            failed = gpu_fill.fill(QUEUE, options, PARTS, gpu_fill.command_of)
    gpu_fill.show_left(QUEUE, options, PARTS)
    return 1 if failed else 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Return a context manager in which SIGTERM raises `SystemExit`, so that the part ends too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ask() -> str:
    """Return the name of the device that jax computes on."""
    return subprocess.run(
        [sys.executable, "-c", ASK], check=True, capture_output=True, text=True
    ).stdout.strip()


def device_name(kind: str) -> str:
    """Return a device's name as it is in file names."""
    return kind.replace(" ", "_").lower()


def run_part(name: str, options: argparse.Namespace) -> int:
    """Run the pieces of one part that are left and fit, and write its file after each."""
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    about, settings = environment(), settings_of(options)
    path = options.out / file_name(name, options.name, device_name(about["device"]))
    kept = read(path.name, options.out, *([options.kept] if options.kept else []))
    if is_complete(kept):
        print(f"{name}: done before, {path}")
        return 0
    if kept and kept["settings"] != settings:
        print(f"{name}: starts again, because {path.name} has other settings")
        kept = {}
    began = time.monotonic()
    head = {"part": name, "complete": False, "settings": settings, "pieces": {}, **about}
    done = run(PARTS[name], options, path, kept, head, _fits(name, options))
    how = "" if done else ", not complete"
    print(f"{name}: {time.monotonic() - began:.0f} s, {path}{how}", flush=True)
    return 0


def _fits(name: str, options: argparse.Namespace) -> Callable[[str, list[str]], bool]:
    """Return a function that says whether there is time for a piece, from its estimate."""
    entry = entry_of(name, options.name)

    def fits(piece: str, before: list[str]) -> bool:
        gone = time.monotonic() - BEGAN
        return cost(entry, piece, before, options) <= options.seconds - gone

    return fits


def settings_of(options: argparse.Namespace) -> dict:
    """Return the options that change a part's result. A result of others is not continued."""
    names = ("width", "size", "steps", "theirs", "set")
    return {name: getattr(options, name) for name in names}


if __name__ == "__main__":
    sys.exit(main())
