"""d3jax's side of benchmarks/train_step.py.

It is the real training step, as a study runs it, on generated images.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from worker import serve

from d3jax.attacks import BadNetsConfig, make_badnets
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.models import PreActResNet18Config, WideResNetConfig, count_parameters
from d3jax.runtime.environment import environment
from d3jax.training import TrainLoop, victim_loop
from d3jax.training.memory import memory_needed
from d3jax.training.scan import ScannedStep


def training(settings: dict[str, Any]) -> TrainLoop:
    """Return the training of a net on generated images with the BadNets trigger.

    The settings are the `net` with its `width`, `name` (the precision), `images` and `batch`.
    """
    data = make_synthetic(SyntheticConfig(size=32, channels=3, train=settings["images"], test=100))
    info = dataclasses.replace(data.info, crop=4, flip=True)
    net = (
        WideResNetConfig(depth=16, width=1)
        if settings.get("net") == "wide_resnet"
        else PreActResNet18Config(width=settings["width"])
    )
    return victim_loop(
        jax.random.key(0),
        net.build(info, jnp.dtype(settings["name"])),
        data._replace(info=info),
        make_badnets(BadNetsConfig(), info),
        TrainConfig(steps=10**6, batch_size=settings["batch"], optimizer=OptimConfig()),
    )


def prepare(settings: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a function that times a round in the precision `name`, and facts about it.

    A round is about `steps` steps of `batch` images each: a whole number of calls of the compiled
    program.
    """
    loop = training(settings)
    repeat = ScannedStep(loop.step)
    n = repeat.steps_per_call
    calls = max(1, settings["steps"] // n)
    began = time.perf_counter()
    program = repeat.program(loop.state, loop.data, n)
    cost = program.cost_analysis() or {}
    about = {
        "compile_s": time.perf_counter() - began,
        "steps": calls * n,
        "bytes": memory_needed(program),
        "parameters": count_parameters(loop.state.variables.params),
        "xla_flops_a_call": cost.get("flops"),  # XLA counts a loop's body once
        "xla_bytes_a_call": cost.get("bytes accessed"),
        "environment": environment(),
    }
    box = [jax.tree.map(jnp.copy, loop.state)]

    def run() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            box[0], metrics = repeat(box[0], loop.data, n)
        jax.block_until_ready((box[0], metrics))
        return time.perf_counter() - began

    run()  # the first calls are slower
    return run, about


if __name__ == "__main__":
    serve(prepare)
