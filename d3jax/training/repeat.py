"""The loop primitive: a step compiled to run several times a call. Nothing else in d3jax loops over gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ..base import Metrics, TrainState
from ..errors import OutOfMemoryError
from ..sharding import COPIES, MEMBERS
from .step import Step

SCAN = 25
"""Steps in one call on accelerators: enough to hide the host, few enough to compile once for every period."""

Call = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class Repeat:
    """`repeat(state, data, n) -> (state, metrics stacked over n steps)`, compiled once for each n and donated its state.

    `n` is 1 or `steps_per_call`: 1 on CPU, 25 on accelerators unless told otherwise. XLA:CPU runs the backward pass of a
    convolution 10–65× slower inside any loop (3× in a scan of one unrolled step), so there the steps are written out.
    `step` may be vmapped over members; on a `mesh` their states are split over its rows.
    """

    def __init__(self, step: Step, *, steps_per_call: int = 0, mesh: Mesh | None = None, members: bool = False):
        on_cpu = jax.default_backend() == "cpu"
        self.steps_per_call = steps_per_call or (1 if on_cpu else SCAN)
        self.mesh, self._step, self._unroll, self._compiled = mesh, step, on_cpu, {}
        self._out = None if mesh is None else (NamedSharding(mesh, MEMBERS if members else COPIES), NamedSharding(mesh, COPIES))

    def __call__(self, state: TrainState, data: Any, n: int) -> tuple[TrainState, Metrics]:
        """Runs `n` steps. Raises `OutOfMemoryError` where the device's memory does not suffice."""
        try:
            return self.compiled(state, data, n)(state, data)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemoryError(f"the device ran out of memory ({str(error).splitlines()[0][:120]}): {LOWER}") from error

    def has(self, n: int) -> bool:
        """Whether the program of `n` steps is compiled."""
        return n in self._compiled

    def compiled(self, state: TrainState, data: Any, n: int) -> jax.stages.Compiled:
        """The program of `n` steps, for arrays like these."""
        if n not in self._compiled:
            jitted = jax.jit(self._steps(n), donate_argnums=0, out_shardings=self._out)
            if self.mesh is None:
                self._compiled[n] = jitted.lower(state, data).compile()
            else:
                with jax.set_mesh(self.mesh):
                    self._compiled[n] = jitted.lower(state, data).compile()
        return self._compiled[n]

    def _steps(self, n: int) -> Call:
        if not self._unroll:
            return lambda state, data: jax.lax.scan(lambda state, _: self._step(state, data), state, None, length=n)

        def written_out(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
            metrics = []
            for _ in range(n):
                state, reported = self._step(state, data)
                metrics.append(reported)
            return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)

        return written_out


LOWER = "lower the batch size, the model's width or loop.steps_per_call, or run members apart (loop.members)"


def memory_needed(program: jax.stages.Compiled) -> int:
    """Bytes on each device that `program` holds at once: arguments, results that reuse none of them, and scratch."""
    used = program.memory_analysis()
    return used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes + used.temp_size_in_bytes


def memory_there(device: jax.Device) -> int | None:
    """Bytes the device may give to programs; None where it does not say (CPU)."""
    return (device.memory_stats() or {}).get("bytes_limit")
