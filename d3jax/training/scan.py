"""The loop primitive: a step compiled to run several times a call. Nothing else in d3jax loops over gradients."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ..core.types import Metrics, TrainState
from ..runtime.compilation import compiled
from ..runtime.sharding import COPIES, MEMBERS
from .step import Step

SCAN = 25
"""Steps in one call on accelerators: enough to hide the host, few enough to compile once for every period."""


def steps_a_call(steps_per_call: int = 0) -> int:
    """Steps in one call: those that are asked for, else 1 on CPU and `SCAN` on accelerators."""
    return steps_per_call or (1 if jax.default_backend() == "cpu" else SCAN)


def whole_calls(period: int, steps_per_call: int = 0) -> int:
    """The period nearest to `period` steps that whole calls fill, where it is longer than one: what is left over would be a program of
    its own to compile."""
    call = steps_a_call(steps_per_call)
    return round(period / call) * call if period > call else period


class ScannedStep:
    """`repeat(state, data, n) -> (state, metrics stacked over n steps)`, compiled once for each n and donated its state.

    `n` is 1 or `steps_per_call`: 1 on CPU, 25 on accelerators unless told otherwise. XLA:CPU runs the backward pass of a
    convolution 10–65× slower inside any loop (3× in a scan of one unrolled step), so there the steps are written out.
    `step` may be vmapped over members; on a `mesh` their states are split over its rows. `data.batch`, where there is one,
    holds the batches of the n steps, stacked.
    """

    def __init__(
        self,
        step: Step,
        *,
        steps_per_call: int = 0,
        mesh: Mesh | None = None,
        members: bool = False,
    ):
        self.steps_per_call = steps_a_call(steps_per_call)
        self._step, self._mesh, self._unroll, self._programs = (
            step,
            mesh,
            jax.default_backend() == "cpu",
            {},
        )
        self._out = (
            None
            if mesh is None
            else (NamedSharding(mesh, MEMBERS if members else COPIES), NamedSharding(mesh, COPIES))
        )

    def __call__(self, state: TrainState, data: Any, n: int) -> tuple[TrainState, Metrics]:
        """Runs `n` steps."""
        return self.program(state, data, n)(state, data)

    def has(self, n: int) -> bool:
        """Whether the program of `n` steps is compiled."""
        return n in self._programs

    def program(self, state: TrainState, data: Any, n: int) -> jax.stages.Compiled:
        """The compiled program of `n` steps, for arrays like these."""
        if n not in self._programs:
            steps = jax.jit(
                functools.partial(self._steps, n), donate_argnums=0, out_shardings=self._out
            )
            with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
                devices = {
                    device for leaf in jax.tree.leaves((state, data)) for device in leaf.devices()
                }
                self._programs[n] = compiled(steps.lower(state, data), devices)
        return self._programs[n]

    def _steps(self, n: int, state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        batches = getattr(data, "batch", None)

        def one(state, batch):
            return self._step(state, data if batch is None else data._replace(batch=batch))

        if not self._unroll:
            return jax.lax.scan(one, state, batches, length=n)
        metrics = []
        for i in range(n):
            state, reported = one(state, jax.tree.map(lambda leaf: leaf[i], batches))  # noqa: B023
            metrics.append(reported)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)
