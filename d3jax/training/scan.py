"""The loop primitive: compiles a train step to run several times per call.

No other module of d3jax loops over steps that take gradients.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ..core.types import Metrics, TrainState
from ..runtime.compilation import compiled
from ..runtime.sharding import COPIES, MEMBERS
from .step import Step

SCAN = 25
"""Steps in one call on accelerators.

They are enough to hide the host's overhead, and few enough that one program serves every period.
"""


def steps_a_call(steps_per_call: int = 0) -> int:
    """Return the number of train steps that one call of a compiled train program runs.

    It is `steps_per_call`, or where that is 0, 1 on CPU and `SCAN` on accelerators.
    """
    return steps_per_call or (1 if jax.default_backend() == "cpu" else SCAN)


def whole_calls(period: int, steps_per_call: int = 0) -> int:
    """Round a period in train steps to a multiple of the steps that one program call runs.

    Steps that do not fill a call would need a second compiled program. A period that is not longer
    than one call is returned as it is.
    """
    call = steps_a_call(steps_per_call)
    return round(period / call) * call if period > call else period


_PROGRAMS: weakref.WeakKeyDictionary[Step, dict[Hashable, jax.stages.Compiled]] = (
    weakref.WeakKeyDictionary()
)
"""The compiled programs of every train step that is in use, by what else determines a program.

A method that runs several loops with one step in turn so compiles it once.
"""


class ScannedStep:
    """A train step compiled to run several times per call.

    An instance is called as `repeat(state, data, n) -> (state, metrics)`, with the metrics stacked
    over the n steps. It is compiled once for each n, and the state is donated. `n` is 1 or
    `steps_per_call`, which is 1 on CPU and 25 on accelerators unless given.

    XLA:CPU runs the backward pass of a convolution 10–65× slower inside any loop (3× in a scan of
    one unrolled step). On CPU the steps are therefore unrolled. `step` may be vmapped over members,
    whose states a `mesh` splits over its rows. `data.batch`, where there is one, holds the stacked
    batches of the n steps.
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
        self._step, self._mesh, self._members = step, mesh, members
        self._unroll, self._programs = jax.default_backend() == "cpu", {}
        self._out = (
            None
            if mesh is None
            else (NamedSharding(mesh, MEMBERS if members else COPIES), NamedSharding(mesh, COPIES))
        )

    def __call__(self, state: TrainState, data: Any, n: int) -> tuple[TrainState, Metrics]:
        """Run a train step `n` times; return the last state and the metrics of all steps."""
        return self.program(state, data, n)(state, data)

    def has(self, n: int) -> bool:
        """Return whether the program that runs `n` train steps per call is compiled already."""
        return n in self._programs

    def program(self, state: TrainState, data: Any, n: int) -> jax.stages.Compiled:
        """Return the compiled program of `n` train steps, for arrays like `state` and `data`."""
        if n not in self._programs:
            steps = jax.jit(
                functools.partial(self._steps, n), donate_argnums=0, out_shardings=self._out
            )
            leaves, tree = jax.tree.flatten((state, data))
            devices = {device for leaf in leaves for device in leaf.devices()}
            shapes = tuple(map(jax.typeof, leaves))
            what = (n, self._mesh, self._members, tree, shapes, frozenset(devices))
            known = _PROGRAMS.setdefault(self._step, {})
            if what not in known:
                with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
                    known[what] = compiled(steps.lower(state, data), devices)
            self._programs[n] = known[what]
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
