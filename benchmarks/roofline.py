"""Compare the training step with what its operations and bytes allow on a GPU.

The step is d3jax's own, of PreActResNet18 in bfloat16. It is traced, and nothing is computed. Every
pass (see benchmarks/traced.py) takes at least its FLOPs over the dense rate, and its bytes over the
bandwidth. Beside these bounds stand the milliseconds of a committed profile, by kind of kernel. The
profile is of the published width and 512 images.

Command:
    python benchmarks/roofline.py [--width 64] [--batch 512] [--goal 0.4]
        [--out benchmarks/results/roofline_h200.txt]
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import traced
import train_step

RESULTS = Path(__file__).parent / "results"
PROFILE = RESULTS / "profile_nvidia_h200.json"
THROUGHPUT = RESULTS / "throughput-512_nvidia_h200.json"
DENSE, BANDWIDTH = 989e12, 4.8e12
"""An H200's bfloat16 FLOP/s without sparsity, and its memory's bytes/s (NVIDIA's data sheet)."""

SUMS = ("BatchNorm statistics", "BatchNorm backward sums")
ELEMENTWISE = (
    "elementwise, forward", "elementwise, backward", "casts of weights", "optimiser",
    "images: draw, poison, crop, flip", "head and loss",
)  # fmt: skip
CONVOLUTIONS = ("forward convolutions", "input gradients", "weight gradients")
GROUPS = {**{name: (name,) for name in CONVOLUTIONS}, "sums": SUMS, "elementwise": ELEMENTWISE}
"""The kinds of passes by group. The names of kernels tell groups apart, but not their kinds."""
KERNELS = {
    "fills and layout changes": ("Memset", "Padding", "ReduceSplitK"),
    "sums": ("input_reduce",),
    "elementwise": ("loop_",),
    CONVOLUTIONS[0]: ("fprop",),
    CONVOLUTIONS[1]: ("dgrad",),
    CONVOLUTIONS[2]: ("wgrad", "Wgrad"),
}
"""Parts of the names of kernels by group; the first that matches counts."""


class Bound(NamedTuple):
    """What a kind of pass needs at least: passes, FLOPs, bytes, and seconds by either and both."""

    passes: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    seconds: float = 0.0

    def plus(self, flops: float, moved: float) -> Bound:
        """Return the bound of one pass more."""
        compute, memory = flops / DENSE, moved / BANDWIDTH
        more = (1, flops, moved, compute, memory, max(compute, memory))
        return Bound(*(a + b for a, b in zip(self, more, strict=True)))


def main() -> None:
    """Print the bounds, the measured times and what follows, and write them to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--goal", type=float, default=0.4, help="share of the dense rate wanted")
    parser.add_argument("--out", type=Path, help="file that gets a copy of what is printed")
    options = parser.parse_args()
    found = bounds(step_program(options.width, options.batch))
    lines = [f"Command: benchmarks/roofline.py {' '.join(sys.argv[1:])}", ""]
    lines += table(found)
    if (options.width, options.batch) == (64, 512):
        lines += ["", *comparison(found, measured(), options.goal)]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text, encoding="utf8")


def step_program(width: int, batch: int) -> traced.Program:
    """Return the traced training step of benchmarks/ours.py, in bfloat16."""
    from d3jax.attacks import BadNetsConfig, make_badnets
    from d3jax.config.recipes import OptimConfig, TrainConfig
    from d3jax.data import SyntheticConfig, make_synthetic
    from d3jax.models import PreActResNet18Config, make_preact_resnet18
    from d3jax.training import victim_loop

    data = make_synthetic(SyntheticConfig(size=32, channels=3, train=max(batch, 1000), test=100))
    info = dataclasses.replace(data.info, crop=4, flip=True)
    model = make_preact_resnet18(PreActResNet18Config(width=width), info, jnp.bfloat16)

    def zeros(key: jax.Array) -> Any:  # in place of weights that would have to be computed
        shapes = jax.eval_shape(model.init, key)
        return jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), shapes)

    loop = victim_loop(
        jax.random.key(0),
        model._replace(init=zeros),
        data._replace(info=info),
        make_badnets(BadNetsConfig(), info),
        TrainConfig(steps=10**6, batch_size=batch, optimizer=OptimConfig()),
    )
    # On a CPU with oneDNN the step has another input gradient.
    with mock.patch.dict(os.environ, D3JAX_ONEDNN="0"):
        return traced.program_of(jax.make_jaxpr(loop.step)(loop.state, loop.data))


def bounds(program: traced.Program) -> dict[str, Bound]:
    """Return the bound of every kind of pass of a training step."""
    found: dict[str, Bound] = collections.defaultdict(Bound)
    passes = traced.passes(program)
    weights = {value for value in program.inputs if _is_kernel(value)}
    learned, outputs = traced.depends_on(program, weights), {one.base for one in program.outputs}
    for one in passes:
        kind = kind_of(one, learned, outputs)
        found[kind] = found[kind].plus(2 * one.macs, one.bytes)
    return dict(found)


def _is_kernel(value: traced.Value) -> bool:
    """Return whether an input is a float32 kernel of a convolution, and not an image."""
    return len(value.shape) == 4 and value.itemsize == 4


def kind_of(one: traced.Pass, learned: set[traced.Value], outputs: set[traced.Value]) -> str:
    """Return the kind of a pass; `learned` are the values that depend on weights."""
    first = one.roots[0]
    made = one.results
    backward = any("transpose(" in root.scope for root in one.roots)
    if first.name == "conv_general_dilated":
        by_weight = first.parameters["dimension_numbers"].lhs_spec[0] != 0
        return CONVOLUTIONS[2 if by_weight else backward]
    if not made & learned:
        return "images: draw, poison, crop, flip"
    if made & outputs and not any("BatchNorm" in root.scope for root in one.roots):
        return "optimiser" if any(len(value.shape) > 1 for value in made) else "head and loss"
    if "BatchNorm" in first.scope and any(root.name in traced.SUMS for root in one.roots):
        return SUMS[backward]
    if "block" not in first.scope and "stem" not in first.scope:
        return "head and loss"
    if all(root.name == "convert_element_type" for root in one.roots) and _of_weights(one):
        return "casts of weights"
    return ELEMENTWISE[backward]


def _of_weights(one: traced.Pass) -> bool:
    return all(value.source is None for value in one.reads)


def measured() -> dict[str, float]:
    """Return the milliseconds a step of every group of kernels, from the committed files.

    The last two are the kernels that the profile does not name, and the rest of the step.
    """
    profile = json.loads(PROFILE.read_text(encoding="utf8"))
    steps, spent = profile["about"]["steps"], collections.Counter()
    for line in profile["kernels"].values():
        named = sum(kernel["ms"] for kernel in line["longest"])
        for kernel in line["longest"]:
            spent[group_of(kernel["name"])] += kernel["ms"] / steps
        spent["kernels without a name"] += (line["ms"] - named) / steps
    rates = json.loads(THROUGHPUT.read_text(encoding="utf8"))
    step = 1e3 * rates["batch"] / rates["images_a_second"]["ours/bfloat16"]["median"]
    return {**spent, "between kernels": step - sum(spent.values())}


def group_of(kernel: str) -> str:
    """Return the group of a kernel, from its name."""
    return next(
        (group for group, parts in KERNELS.items() if any(part in kernel for part in parts)),
        "kernels without a name",
    )


def table(found: dict[str, Bound]) -> list[str]:
    """Return the lines that show the bound of every kind of pass."""
    rows = [("kind of pass", "passes", "GFLOP", "MB", "compute ms", "memory ms", "bound ms")]
    kinds = (kind for kind in (*CONVOLUTIONS, *SUMS, *ELEMENTWISE) if kind in found)
    for kind, one in [*((kind, found[kind]) for kind in kinds), ("all", total(found.values()))]:
        counts = f"{one.passes}", f"{one.flops / 1e9:,.1f}", f"{one.bytes / 1e6:,.1f}"
        times = (f"{1e3 * value:.3f}" for value in (one.compute, one.memory, one.seconds))
        rows.append((kind, *counts, *times))
    rates = f"{DENSE / 1e12:g} TFLOP/s dense bfloat16 and {BANDWIDTH / 1e12:g} TB/s"
    return [f"Least time of a step at {rates}:", "", *aligned(rows)]


def total(some: Iterable[Bound]) -> Bound:
    """Return the sum of some bounds."""
    return Bound(*map(sum, zip(*some, strict=True)))


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Return lines of words as text, in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            word.rjust(width) if i else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def comparison(found: dict[str, Bound], spent: dict[str, float], goal: float) -> list[str]:
    """Return the lines that compare the bounds with the measured times, and what follows."""
    least = {
        group: 1e3 * total(found.get(kind, Bound()) for kind in kinds).seconds
        for group, kinds in GROUPS.items()
    }
    rows = [("kernels", "measured ms", "bound ms", "factor")]
    for group in [*GROUPS, *(group for group in spent if group not in GROUPS)]:
        rows.append((group, *_compared(spent[group], least.get(group, 0.0))))
    rows.append(("step", *_compared(sum(spent.values()), sum(least.values()))))
    return ["Measured:", "", *aligned(rows), "", *conclusion(spent, least, goal)]


def _compared(value: float, least: float) -> tuple[str, str, str]:
    if not least:
        return f"{value:.3f}", "–", "–"
    return f"{value:.3f}", f"{least:.3f}", f"{value / least:.2f}"


def conclusion(spent: dict[str, float], least: dict[str, float], goal: float) -> list[str]:
    """Return sentences about what must get faster, from the milliseconds of every group."""
    flops = 6 * train_step.macs(64) * 512
    wanted = 1e3 * flops / (goal * DENSE)

    def rate(ms: float) -> str:
        return f"{ms:.2f} ms, {share(ms):.1%}: {'enough' if ms <= wanted else 'not enough'}"

    def share(ms: float) -> float:
        return flops / (ms * 1e-3) / DENSE

    step, bound = sum(spent.values()), sum(least.values())
    products, convolving = (sum(some[name] for name in CONVOLUTIONS) for some in (least, spent))
    others, passes = step - convolving, bound - products
    gaps = {group: value - least.get(group, 0.0) for group, value in spent.items()}
    order = sorted(gaps, key=lambda group: -gaps[group])
    listed = ", ".join(f"{group} {gaps[group]:.2f}" for group in order)
    text = (
        f"Sums and elementwise passes need {passes:.2f} ms for their bytes. Of the goal this "
        f"leaves {wanted - passes:.2f} ms for convolutions. These need {products:.2f} ms, and take "
        f"{convolving:.2f} ms now, at {share(convolving):.0%} of the dense rate. They must become "
        f"{convolving / (wanted - passes):.2f} times as fast if all else is at its bound, and "
        f"{convolving / (wanted - others):.2f} times if nothing else changes."
    )
    return [
        f"The goal, {goal:.0%} of the dense rate, is a step of {wanted:.2f} ms.",
        "",
        f"- now: {rate(step)}",
        f"- all at its bound: {rate(bound)}",
        f"- only convolutions at their bounds: {rate(products + others)}",
        f"- all but convolutions at its bound, nothing between: {rate(convolving + passes)}",
        f"- half of every gap closed: {rate((step + bound) / 2)}",
        "",
        *textwrap.wrap(f"Gaps between measured and bound, in ms: {listed}.", 100),
        "",
        *textwrap.wrap(text, 100),
    ]


if __name__ == "__main__":
    main()
