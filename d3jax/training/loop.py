"""The one loop: repeat a step over a carried state, log, checkpoint, stop on a loss that is not finite."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import Metrics, TrainState, Variables
from ..errors import DivergedError
from .step import Step

Line = dict[str, float]
"""One logged line: `step`, `seconds` since the loop began (resumes included), the mean of every metric since the last line."""


class Session(NamedTuple):
    """What surrounds a loop without changing its numbers. The default logs nothing and saves nothing.

    `log(line, steps)` is called every `log_every` steps and whenever something below is due; `save(state, lines)` every `save_every` steps and never with a broken
    state; `restore(state) -> (state, lines) | None` continues an earlier run; `watch(variables) -> metrics` is measured
    every `watch_every` steps (0: never) and added to the line, for plots only.
    """

    log: Callable[[Line, int], None] = lambda line, steps: None
    save: Callable[[TrainState, list[Line]], None] = lambda state, lines: None
    restore: Callable[[TrainState], tuple[TrainState, list[Line]] | None] = lambda state: None
    watch: Callable[[Variables], Line] = lambda variables: {}
    log_every: int = 25
    save_every: int = 0
    watch_every: int = 0
    steps_per_call: int = 0


def fit(step: Step, state: TrainState, data: Any, *, steps: int, session: Session = Session()) -> tuple[TrainState, list[Line]]:
    """Runs `step` until the state has seen `steps` steps; returns it and the logged lines, those before a resume included.

    Raises `DivergedError` at the first loss that is not finite, or where a state to be kept is not. The caller's arrays stay valid: the state is copied once,
    then donated from call to call.
    """
    restored = session.restore(state)
    state, lines = restored if restored else (jax.tree.map(jnp.copy, state), [])
    started = time.monotonic() - (lines[-1]["seconds"] if lines else 0.0)
    repeat = make_repeat(step, steps_per_call=session.steps_per_call)
    done, pending, first = int(state.step), [], int(state.step)
    for until in _boundaries(done, steps, session):
        for count in _chunks(until - done, repeat.steps_per_call):
            state, metrics = repeat(state, data, count)
            pending.append(metrics)
            done += count
        stacked = _fetch(pending)
        _check_finite(stacked["loss"], first)
        lines.append(_line(stacked, done, time.monotonic() - started, session, state))
        session.log(lines[-1], steps)
        pending, first = [], done
        if _due(done, session.save_every) or done == steps:
            _check_state(state.variables, done)
        if _due(done, session.save_every) and done < steps:
            session.save(state, lines)
    return state, lines


class Repeat(NamedTuple):
    """`repeat(state, data, n) -> (state, metrics stacked over n steps)`, compiled; `n` is 1 or `steps_per_call`."""

    call: Callable[[TrainState, Any, int], tuple[TrainState, Metrics]]
    steps_per_call: int

    def __call__(self, state: TrainState, data: Any, n: int) -> tuple[TrainState, Metrics]:
        return self.call(state, data, n)


def make_repeat(step: Step, *, steps_per_call: int = 0) -> Repeat:
    """Compiles `step` to run several times a call: once on CPU, in a scan of 25 on accelerators, unless told otherwise.

    XLA:CPU runs the backward pass of a convolution 10–65× slower inside any loop (a scan of one unrolled step included:
    3× here), so there a call is one step, or `steps_per_call` of them written out.
    """
    on_cpu = jax.default_backend() == "cpu"

    @functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
    def call(state, data, n):
        if not on_cpu:
            return jax.lax.scan(lambda state, _: step(state, data), state, None, length=n)
        metrics = []
        for _ in range(n):
            state, reported = step(state, data)
            metrics.append(reported)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)

    return Repeat(call, steps_per_call or (1 if on_cpu else 25))


def trace_of(lines: list[Line]) -> dict[str, np.ndarray]:
    """Lines as one array a metric, NaN where a line lacks it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in names}


def lines_of(trace: dict[str, np.ndarray]) -> list[Line]:
    """The inverse of `trace_of`."""
    count = len(next(iter(trace.values()), ()))
    return [{name: values[i].item() for name, values in trace.items() if not np.isnan(values[i])} for i in range(count)]


def _boundaries(done: int, steps: int, session: Session) -> Iterator[int]:
    """Steps at which the host looks in. They depend on the absolute step only, so a resumed run makes the same calls."""
    periods = [n for n in (session.log_every, session.save_every, session.watch_every) if n]
    while done < steps:
        done = min([steps, *((done // n + 1) * n for n in periods)])
        yield done


def _chunks(count: int, steps_per_call: int) -> Iterator[int]:
    while count:
        chunk = steps_per_call if count >= steps_per_call else 1
        yield chunk
        count -= chunk


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _fetch(pending: list[Metrics]) -> dict[str, np.ndarray]:
    fetched = jax.device_get(pending)
    return {name: np.concatenate([metrics[name] for metrics in fetched]) for name in fetched[0]}


def _check_finite(loss: np.ndarray, first: int) -> None:
    broken = np.flatnonzero(~np.isfinite(loss))
    if broken.size:
        raise DivergedError(
            f"the loss became {loss[broken[0]]} at step {first + broken[0] + 1}: lower the learning rate, or look at the "
            "data; the last good checkpoint is kept"
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _check_state(variables: Variables, done: int) -> None:
    if not _all_finite(variables):
        raise DivergedError(
            f"a parameter or running statistic is no longer finite after step {done}, though the loss was: lower the "
            "learning rate; the last good checkpoint is kept"
        )


def _line(stacked: dict[str, np.ndarray], done: int, seconds: float, session: Session, state: TrainState) -> Line:
    line = {"step": done, "seconds": seconds} | {
        name: float(np.mean(values, dtype=np.float64)) for name, values in stacked.items()
    }
    return line | (session.watch(state.variables) if _due(done, session.watch_every) else {})
