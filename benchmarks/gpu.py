"""GPU benchmarks in parts, each of which ends within nine minutes and writes one JSON file.

They need jax, flax, optax, orbax, numpy and this folder, and PyTorch for the comparison. They need
no network. A part whose file exists is skipped. A table that was cut off continues where its study
stopped, if the folder of `--work` still exists.

Data: python -m d3jax.data cifar10 --out cifar10.npz

    python benchmarks/gpu.py [PART …] [--out OUT] [--work DIR] [--data cifar10.npz]
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import jax
import jax.numpy as jnp

from d3jax.runtime.environment import environment

BATCHES = (128, 256, 512, 1024)
ATTACKS = ("badnets", "blended", "sig", "wanet", "lf", "input_aware", "ssba")
UNTRUSTED = ("badnets", "blended", "sig", "clean")


def ceilings(options: argparse.Namespace) -> dict[str, Any]:
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


def throughput(batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the training steps of d3jax and PyTorch, with the rates of both in TFLOP/s.

    See benchmarks/train_step.py. The default width is 64.
    """
    import train_step

    settings = {
        "width": options.width,
        "batch": batch,
        "steps": options.steps,
        "rounds": 7,
        "images": 10_000,
    }
    result = train_step.measure(**settings, torch=sys.executable, ours=None, theirs=options.theirs)
    rates = result["images_a_second"]
    return result | {
        "tflops": {
            name: rate["median"] * result["flops_an_image"] / 1e12 for name, rate in rates.items()
        }
    }


def profile(options: argparse.Namespace) -> dict[str, Any]:
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


def members(options: argparse.Namespace) -> dict[str, Any]:
    """Compare eight models trained together with one alone, at widths 8, 16 and 32.

    Reports seconds a step at batch 128.
    """
    result = {}
    for width in (8, 16, 32):
        loops = [_job(options, width=width, batch=128, seed=seed) for seed in range(8)]
        together, alone = _seconds_a_step(loops), _seconds_a_step(loops[:1])
        result[f"width {width}"] = {
            "eight_together_s": together,
            "one_alone_s": alone,
            "speedup": 8 * alone / together,
        }
    return result


def streaming(options: argparse.Namespace) -> dict[str, Any]:
    """Compare images resident on the device with images streamed batch by batch.

    Reports seconds a step at batch 512. The default width is 64.
    """
    loops = {
        name: _job(options, width=options.width, batch=512, streamed=name == "streamed")
        for name in ("resident", "streamed")
    }
    seconds = {f"{name}_s": _seconds_a_step([loop]) for name, loop in loops.items()}
    return seconds | {"ratio": seconds["streamed_s"] / seconds["resident_s"]}


def inversion(options: argparse.Namespace) -> dict[str, Any]:
    """Compare trigger inversion for all classes at once with one class after another.

    Measured with 10 and with 100 classes. The default width is 64.
    """
    import inversion

    settings = {"width": options.width, "batch": 32, "steps": options.steps or 4, "rounds": 5}
    return {
        f"{classes} classes": inversion.measure(classes=classes, **settings)
        for classes in (10, 100)
    }


def lineages(options: argparse.Namespace) -> dict[str, Any]:
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


def table(study_of: str, attack: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one attack of the experiment `study_of` and return its rows.

    `cifar10_d3` trains at full width for 100 epochs, then applies FT and both D3 presets.
    `dlp_cifar10_full` has the same training, ABL with BackdoorBench's settings, and DLP. Both have
    three seeds. `abl_cifar10` runs ABL with its authors' settings on their net.
    """
    from d3jax.config.loading import load
    from d3jax.study import run as study

    overrides = [
        ("dataset.path", str(options.data)),
        *(tuple(word.split("=", 1)) for word in options.set),
    ]
    config = load(
        HERE.parent / "experiments" / f"{study_of}.yaml", overrides, registries=study.REGISTRIES
    )
    only = tuple(choice for choice in config.attacks if choice.label == attack)
    mine = {name: text for name, text in config.published.items() if name.startswith(f"{attack}/")}
    began = time.perf_counter()
    config = dataclasses.replace(
        config, attacks=only, published=mine, cache=config.cache or str(options.work / "models")
    )
    rows = study.run_study(config, options.work / study_of / attack)
    if failed := [f"{row['defense']}: {row['status']}" for row in rows if row["status"] != "ok"]:
        raise SystemExit("\n".join(failed))
    return {"seconds": time.perf_counter() - began, "rows": rows}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ceilings": ceilings,
    **{f"throughput-{batch}": functools.partial(throughput, batch) for batch in BATCHES},
    "profile": profile,
    "members": members,
    "streaming": streaming,
    "inversion": inversion,
    "lineages": lineages,
    **{f"table-{attack}": functools.partial(table, "cifar10_d3", attack) for attack in ATTACKS},
    **{
        f"untrusted-{attack}": functools.partial(table, "dlp_cifar10_full", attack)
        for attack in UNTRUSTED
    },
    "untrusted-abl": functools.partial(table, "abl_cifar10", "badnets"),
}


def main() -> int:
    """Run the chosen parts, each in a process of its own.

    A part that fails writes no file. The exit code is then 1.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"default: all of {', '.join(PARTS)}"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--data", type=Path, default=Path("cifar10.npz"))
    parser.add_argument(
        "--width", type=int, default=64, help="width of the net (64: the published net)"
    )
    parser.add_argument("--size", type=int, default=8192, help="size of the matrices in ceilings")
    parser.add_argument(
        "--steps", type=int, default=0, help="steps in a round (0: each part's own number)"
    )
    parser.add_argument(
        "--theirs",
        nargs="*",
        metavar="VARIANT",
        help="PyTorch variants in throughput (default: all; compiling them takes minutes)",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the tables' studies"
    )
    parser.add_argument(
        "--name",
        default="",
        help="added to file names, to run a part again or with other settings",
    )
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if len(options.parts) == 1:
        return run_part(options.parts[0], options)
    flags = [word for word in sys.argv[1:] if word not in options.parts]
    codes = [
        subprocess.run([sys.executable, __file__, name, *flags], check=False).returncode
        for name in options.parts or PARTS
    ]
    return 1 if any(codes) else 0


def run_part(name: str, options: argparse.Namespace) -> int:
    """Run one part and write its file, unless the file exists."""
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    about = environment()
    device = about["device"].replace(" ", "_").lower()
    path = options.out / f"{name}{options.name and '-' + options.name}_{device}.json"
    if path.exists():
        print(f"{name}: done before, {path}")
        return 0
    began = time.perf_counter()
    result = PARTS[name](options)
    path.write_text(json.dumps({"part": name, **about, **result}, indent=1) + "\n", encoding="utf8")
    print(f"{name}: {time.perf_counter() - began:.0f} s, {path}", flush=True)
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
