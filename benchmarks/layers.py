"""Compare convolutions of d3jax and PyTorch on CPU: forward pass and both gradients.

The shapes are those of the four stages of PreActResNet18. Each side is a process of its own, and
they run in turns. "Product" is the matrix product in d3jax's weight gradient alone, on operands
that lie ready: with it as the only form that XLA offers, no weight gradient is faster.

Command:
    python benchmarks/layers.py [--widths 16 64] [--batch 128] [--rounds 9]
        [--torch PYTHON_WITH_TORCH]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import Worker, serve

HERE = Path(__file__).parent
KINDS = ("forward", "input gradient", "weight gradient")
CALLS = 5


def main() -> None:
    """Measure and print one line for each precision, shape and kind, in milliseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch", default="", help="Python interpreter that has torch")
    parser.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return serve(prepare_ours if options.side == "ours" else prepare_torch)
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
    pythons = {"ours": sys.executable} | ({"torch": options.torch} if options.torch else {})
    workers = {
        side: Worker([python, __file__, "--side", side], environment)
        for side, python in pythons.items()
    }
    print("milliseconds, median (least); GFLOP/s of the median")
    for dtype in ("float32", "bfloat16"):
        for width in options.widths:
            for stage in range(4):
                shape = (options.batch, 32 >> stage, width << stage)
                _show(workers, dtype, shape, options.rounds)
    for worker in workers.values():
        worker.close()
    return None


def _show(workers: dict[str, Worker], dtype: str, shape: tuple[int, int, int], rounds: int) -> None:
    batch, side, channels = shape
    flops = 2 * batch * side**2 * 9 * channels**2
    for kind in (*KINDS, "product"):
        asked = {
            name: worker for name, worker in workers.items() if (name, kind) != ("torch", "product")
        }
        for worker in asked.values():
            answer = worker.ask({"prepare": {"name": kind, "dtype": dtype, "shape": shape}})
            if "ready" not in answer:
                raise SystemExit(answer["error"])
        times: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, worker in asked.items():
                times[name].append(worker.ask({"run": kind})["seconds"])
        cells = [
            f"{name} {1e3 * statistics.median(found):7.2f} ({1e3 * min(found):6.2f}) "
            f"{flops / statistics.median(found) / 1e9:4.0f}"
            for name, found in times.items()
        ]
        print(
            f"{dtype:9} {side:2}×{side:<2}×{channels:<4} {kind:15} " + "   ".join(cells), flush=True
        )


def _timed(call: Callable[[], Any]) -> Callable[[], float]:
    call()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - began) / CALLS

    return run


def prepare_ours(settings: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a function that times one kind of convolution of d3jax."""
    sys.path.insert(0, str(HERE.parent))
    import jax
    import jax.numpy as jnp

    from d3jax.models.layers import choice
    from d3jax.models.layers.conv import convolve
    from d3jax.runtime.compilation import compiled

    batch, side, channels = settings["shape"]
    dtype = jnp.dtype(settings["dtype"])
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels), dtype)
    g = x + 1
    kernel = jnp.ones((3, 3, channels, channels), dtype)

    def product(x, g):
        def times(total, operands):
            left, right = operands
            dims = (((1,), (1,)), ((0,), (0,)))
            part = jax.lax.dot_general(left, right, dims, preferred_element_type=jnp.float32)
            return total + part, None

        rows, wide = side * side, 3 * channels
        n = choice.images_a_chunk(batch, 2 * dtype.itemsize * wide * rows, rows, wide)
        k = choice.chunks_at_once(batch // n, 4 * wide * wide)
        operands = (
            jnp.tile(array.reshape(-1, channels)[: k * n * rows], (1, 3)).reshape(k, -1, wide)
            for array in (x, g)
        )
        left, right = jax.lax.optimization_barrier(tuple(operands))
        start = jnp.zeros((k, wide, wide), jnp.float32)

        def step(_, total):
            return times(total, (left, right + total[0, 0, 0].astype(dtype) * 0))[0]

        return jax.lax.fori_loop(0, math.ceil(batch / (k * n)), step, start)

    functions = {
        "forward": lambda x, g: convolve(x, kernel),
        "input gradient": lambda x, g: jax.vjp(lambda x: convolve(x, kernel), x)[1](g),
        "weight gradient": lambda x, g: jax.vjp(lambda k: convolve(x, k), kernel)[1](g),
        "product": product,
    }
    program = compiled(jax.jit(functions[settings["name"]]).lower(x, g))
    return _timed(lambda: jax.block_until_ready(program(x, g))), {}


def prepare_torch(settings: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a function that times one kind of convolution of PyTorch, with channels last."""
    import torch

    batch, side, channels = settings["shape"]
    dtype = getattr(torch, settings["dtype"])

    def make(*shape):
        return torch.ones(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, g = make(batch, channels, side, side), make(batch, channels, side, side)
    kernel, name = make(channels, channels, 3, 3), settings["name"]
    if name == "forward":
        return _timed(lambda: torch.conv2d(x, kernel, None, 1, 1)), {}
    wanted = [name == "input gradient", name == "weight gradient", False]
    ones, zeros = [1, 1], [0, 0]
    backward = torch.ops.aten.convolution_backward
    return _timed(
        lambda: backward(g, x, kernel, None, ones, ones, ones, False, zeros, 1, wanted)
    ), {}


if __name__ == "__main__":
    main()
