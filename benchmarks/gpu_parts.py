"""The parts of the GPU benchmark: what each measures, and its pieces.

Importing this module starts no device.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from gpu_pieces import Part, Result, whole
from gpu_tables import table

BATCHES = (128, 256, 512, 1024)
ATTACKS = ("badnets", "blended", "sig", "wanet", "lf", "input_aware", "ssba")
UNTRUSTED = ("badnets", "blended", "sig", "clean")
ROUNDS = 7
"""Rounds of a comparison with PyTorch."""


def ceilings(options: argparse.Namespace) -> Result:
    """Measure the device's own rates, with which the other parts are compared.

    They are a large matrix product in bfloat16 and in float32 (TF32 on NVIDIA), in TFLOP/s, and a
    copy through memory, in GB/s.
    """
    rates = {}
    for name in ("bfloat16", "float32"):
        n = options.size
        a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.dtype(name)) for i in range(2))
        rates[f"{name}_tflops"] = 2 * n**3 / _median_seconds(jax.jit(jnp.matmul), a, b) / 1e12
    x = jax.random.normal(jax.random.key(0), (n * n,), jnp.float32)
    rates["copy_gb_a_second"] = 2 * x.nbytes / _median_seconds(jax.jit(lambda x: x + 1), x) / 1e9
    return rates


def variants(options: argparse.Namespace) -> list[str]:
    """Return PyTorch's variants in a comparison, the fastest first; "ours" without any."""
    import train_step

    if options.theirs is not None:
        return options.theirs or ["ours"]
    # `left` may ask for a GPU on a machine without one.
    named = options.device not in ("", "cpu")
    names = train_step.THEIRS + train_step.COMPILED if named else train_step.defaults("torch")
    return [*reversed(names)]


def throughput(
    batch: int, options: argparse.Namespace, pieces: Iterable[str], kept: Result
) -> Iterator[tuple[str, Result]]:
    """Compare the training steps of d3jax and PyTorch, with the rates of both in TFLOP/s.

    A piece compares one variant of PyTorch with d3jax's in the same rounds. See
    benchmarks/train_step.py. The default width is 64.
    """
    import train_step

    settings = {"width": options.width, "batch": batch, "steps": options.steps, "images": 10_000}
    comparison = train_step.Comparison(**settings, torch=sys.executable)
    with contextlib.closing(comparison):
        names = train_step.defaults("ours")
        mine = [f"ours/{name}" for name in names if comparison.prepare("ours", name)]
        for piece in pieces:
            there = piece != "ours" and comparison.prepare("torch", piece)
            times = comparison.times(ROUNDS, [*mine, *([f"torch/{piece}"] if there else [])])
            kept = train_step.joined(kept, comparison.about, times)
            yield piece, kept


def profile(options: argparse.Namespace) -> Result:
    """Profile d3jax's bfloat16 step: milliseconds by kernel over 50 steps of 512 images.

    The default width is 64.
    """
    import ours

    run, about = ours.prepare(
        {
            "name": "bfloat16",
            "width": options.width,
            "batch": 512,
            "images": 10_000,
            "steps": options.steps or 50,
        }
    )
    folder = options.work / "profile"
    with jax.profiler.trace(str(folder)):
        seconds = run()
    return {"seconds": seconds, "about": about, "kernels": kernels(folder)}


def kernels(folder: Path, top: int = 60) -> dict[str, Any]:
    """Return milliseconds and calls by kernel from the newest trace under `folder`.

    Every line of a device has its `top` longest kernels, the longest first.
    """
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found = {}
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        if plane.name.startswith("/device:"):
            for line in plane.lines:
                spent, calls = collections.Counter(), collections.Counter()
                for event in line.events:
                    spent[event.name] += event.duration_ns
                    calls[event.name] += 1
                longest = [
                    {"name": name, "ms": ns / 1e6, "calls": calls[name]}
                    for name, ns in spent.most_common(top)
                ]
                found[f"{plane.name} {line.name}"] = {
                    "ms": sum(spent.values()) / 1e6,
                    "longest": longest,
                }
    return found


def widths(options: argparse.Namespace) -> list[str]:
    """Return the widths of `members`, none of them above the option `width`."""
    return list(dict.fromkeys(f"width {min(width, options.width)}" for width in (8, 16, 32)))


def members(
    options: argparse.Namespace, pieces: Iterable[str], kept: Result
) -> Iterator[tuple[str, Result]]:
    """Compare eight models trained together with one alone, at one width in each piece.

    Reports seconds a step at batch 128.
    """
    for piece in pieces:
        width = int(piece.split()[1])
        loops = [_job(options, width=width, batch=128, seed=seed) for seed in range(8)]
        together, alone = _seconds_a_step(loops), _seconds_a_step(loops[:1])
        found = {
            "eight_together_s": together,
            "one_alone_s": alone,
            "speedup": 8 * alone / together,
        }
        kept = kept | {piece: found}
        yield piece, kept


def streaming(options: argparse.Namespace) -> Result:
    """Compare images resident on the device with images streamed batch by batch.

    Reports seconds a step at batch 512. The default width is 64.
    """
    loops = {
        name: _job(options, width=options.width, batch=512, streamed=name == "streamed")
        for name in ("resident", "streamed")
    }
    seconds = {f"{name}_s": _seconds_a_step([loop]) for name, loop in loops.items()}
    return seconds | {"ratio": seconds["streamed_s"] / seconds["resident_s"]}


def class_counts(options: argparse.Namespace) -> list[str]:
    """Return the numbers of classes of `inversion`."""
    return ["10 classes", "100 classes"]


def inversion(
    options: argparse.Namespace, pieces: Iterable[str], kept: Result
) -> Iterator[tuple[str, Result]]:
    """Compare trigger inversion for all classes at once with one class after another.

    A piece has one number of classes. The default width is 64.
    """
    import inversion

    settings = {"width": options.width, "batch": 32, "steps": options.steps or 4, "rounds": 5}
    for piece in pieces:
        classes = int(piece.split()[0])
        kept = kept | {piece: inversion.measure(classes=classes, torch="", **settings)}
        yield piece, kept


def lineages(options: argparse.Namespace) -> Result:
    """Compare updates of 4 and 16 evolving models together with updates of one alone.

    The models have width 8.
    """
    import lineages

    return lineages.measure(
        width=min(options.width, 8), members=[4, 16], steps=options.steps or 50, rounds=5
    )


def _job(
    options: argparse.Namespace, *, width: int, batch: int, seed: int = 0, streamed: bool = False
) -> Any:
    """Return a train loop of BadNets on 10,000 generated images, six log periods long.

    All loops share their images.
    """
    from d3jax.attacks import BadNetsConfig, make_badnets
    from d3jax.config.recipes import TrainConfig
    from d3jax.models import PreActResNet18Config, make_preact_resnet18
    from d3jax.training import victim_loop

    data = _images()
    model = make_preact_resnet18(PreActResNet18Config(width=width), data.info, jnp.bfloat16)
    config = TrainConfig(steps=6 * _period(options), batch_size=batch)
    if streamed:
        data = data._replace(train=jax.device_get(data.train))
    return victim_loop(
        jax.random.key(seed),
        model,
        data,
        make_badnets(BadNetsConfig(), data.info),
        config,
        streamed=streamed,
    )


@functools.cache
def _images() -> Any:
    from d3jax.data import SyntheticConfig, make_synthetic

    data = make_synthetic(SyntheticConfig(size=32, channels=3, train=10_000, test=100))
    return data._replace(train=jax.tree.map(jnp.asarray, data.train))


def _period(options: argparse.Namespace) -> int:
    return options.steps or 100


def _seconds_a_step(loops: list) -> float:
    from d3jax.training import Hooks, fit_ensemble

    period = loops[0].steps // 6
    # The differences between log records leave out the first period, which compiles.
    lines = fit_ensemble(loops, [Hooks(log_every=period)] * len(loops))[0][1]
    return (
        statistics.median(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(lines))
        / period
    )


def _median_seconds(
    function: Callable, *arguments: jax.Array, repeats: int = 20, calls: int = 10
) -> float:
    """Return the median seconds of a call of `function` on `arguments`.

    `calls` calls are queued at once, because waiting for each would time the host too.
    """
    seconds = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        jax.block_until_ready([function(*arguments) for _ in range(calls)])
        seconds.append((time.perf_counter() - began) / calls)
    return statistics.median(seconds[3:])


PARTS: dict[str, Part] = {
    "ceilings": whole(ceilings),
    **{
        f"throughput-{batch}": Part(variants, functools.partial(throughput, batch))
        for batch in BATCHES
    },
    "profile": whole(profile),
    "members": Part(widths, members),
    "streaming": whole(streaming),
    "inversion": Part(class_counts, inversion),
    "lineages": whole(lineages),
    **{f"table-{attack}": table("cifar10_d3", attack) for attack in ATTACKS},
    **{f"claim-{attack}": table("claim_cifar10", attack) for attack in ATTACKS},
    **{f"untrusted-{attack}": table("dlp_cifar10_full", attack) for attack in UNTRUSTED},
    "untrusted-abl": table("abl_cifar10", "badnets"),
    **{f"training-{attack}": table("untrusted_cifar10", attack) for attack in UNTRUSTED},
}
