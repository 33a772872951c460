"""The train loop: repeats a train step, logs, saves checkpoints, stops when a loss is not finite.

A `TrainLoop` describes such a loop as data. Loops that differ only in their arrays can run
together, as the members of one program (`fit_ensemble`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.errors import DivergedError
from ..core.records import LogRecord
from ..core.types import Device, Metrics, TrainState
from ..runtime.distributed import any_process, broadcast_from_host0
from ..runtime.stopping import is_stopping, stopped
from .ensemble import Ensemble
from .memory import check_memory, out_of_memory_named
from .step import Step
from .streaming import Feed


class TrainLoop(NamedTuple):
    """A train loop ready to run: a train step, its initial state, its data and the number of steps.

    `step(state, data)` is called until `state.step` is `steps`. Where `feed` is given, it brings
    `data.batch` for each step. `finished(state)` may end the loop earlier: the host asks it before
    the first step and whenever it logs. A loop with `feed` or `finished` runs alone.
    """

    step: Step
    state: TrainState
    data: Any
    steps: int
    feed: Feed | None = None
    finished: Callable[[TrainState], bool | jax.Array] | None = None


class Hooks(NamedTuple):
    """Callbacks of a train loop for logs, checkpoints and measurements, and when to call them.

    None of them changes the loop's numbers. The default logs and saves nothing. The callbacks are:

    - `start(step, records)` is called once, with the loop's first step and its earlier records.
    - `log(record, steps)` is called every `log_every` steps, at every save and watch, and at the
      end.
    - `save(state, records)` is called every `save_every` steps, at least `save_seconds` apart, and
      when a signal stops the loop. With `save_last` it is also called at the end, because a later
      loop begins there. It never gets a state that is not finite.
    - `saved()` returns the steps that have a checkpoint, oldest first.
    - `restore(state, step)` returns (state, records) of a checkpoint, or None if it is unreadable.
    - `watch(state) -> metrics` is called every `watch_every` steps (0: never) and after the last
      step. Its metrics are added to the log record.
    - `say(text)` gets messages, such as the memory that a program needs.
    - `part(name, watch_every)` returns the hooks of one of several loops, with checkpoints and
      records of its own (see `within`).

    `steps_per_call` 0 chooses a number that suits the backend. `devices` share the work (none: the
    default device). A profile of the second logged period, or of the only one, is written to the
    folder `profile`.
    """

    start: Callable[[int, list[LogRecord]], None] = lambda step, records: None
    log: Callable[[LogRecord, int], None] = lambda record, steps: None
    save: Callable[[TrainState, list[LogRecord]], None] = lambda state, records: None
    saved: Callable[[], list[int]] = list
    restore: Callable[[TrainState, int], tuple[TrainState, list[LogRecord]] | None] = (
        lambda state, step: None
    )
    watch: Callable[[TrainState], LogRecord] = lambda state: {}
    say: Callable[[str], None] = lambda text: None
    part: Callable[[str, int], Hooks] | None = None
    log_every: int = 25
    save_every: int = 0
    save_seconds: float = 0.0
    save_last: bool = False
    watch_every: int = 0
    steps_per_call: int = 0
    devices: Sequence[Device] = ()
    profile: str = ""

    def within(self, name: str, watch_every: int = 0) -> Hooks:
        """Return the `Hooks` of one train loop of several, with checkpoints and records of its own.

        So none of the loops restores another's checkpoint. Without `part` the hooks returned
        neither save nor restore. The state of such a loop need not be a model, so it is watched
        only every `watch_every` steps (0: never).
        """
        nothing = Hooks()
        if self.part:
            return self.part(name, watch_every)
        return self._replace(save=nothing.save, saved=list, restore=nothing.restore, watch_every=0)


Outcome = tuple[TrainState, list[LogRecord]] | DivergedError
"""The last state and all log records of a loop, or the error that ended it.

The records include those from before a resume.
"""


def fit(loop: TrainLoop, hooks: Hooks = Hooks()) -> tuple[TrainState, list[LogRecord]]:
    """Run a train loop to its end and return its last state and all its log records.

    The records include those from before a resume. The caller's arrays stay valid: the state is
    copied once, then donated from call to call.

    Raises `DivergedError` at the first loss that is not finite, or where a state to be saved or
    returned is not finite. Raises `OutOfMemoryError` where the program does not fit on the device.
    """
    (outcome,) = fit_ensemble([loop], [hooks])
    if isinstance(outcome, DivergedError):
        raise outcome
    return outcome


def fit_ensemble(loops: Sequence[TrainLoop], hooks: Sequence[Hooks]) -> list[Outcome]:
    """Run train loops together as one vmapped program; return each one's last state and records.

    Each loop gets the numbers that it would get alone, up to rounding. The loops must have a
    common `step` function; that of the first loop is used. Their states and data must have the same
    shapes. They must have the same number of steps and the same periods in their hooks. Arrays of
    `data` that all loops share are kept once. The outcome of a loop that diverges is its error, and
    the other loops continue. Loops that have no checkpoint of a common step continue in groups: one
    group for each newest step.

    Raises `OutOfMemoryError`, and `StoppedError` after a signal, once all loops are saved. Raises
    `ValueError` for several loops of which one has `feed` or `finished`.
    """
    if len(loops) > 1 and any(loop.feed or loop.finished for loop in loops):
        raise ValueError("a train loop with `feed` or `finished` runs alone: pass it to `fit`")
    outcomes: dict[int, Outcome] = {}
    for group in _groups(hooks):
        with out_of_memory_named():
            found = _Run([loops[i] for i in group], [hooks[i] for i in group]).outcomes()
        outcomes |= dict(zip(group, found, strict=True))
    return [outcomes[i] for i in range(len(loops))]


class _Run:
    """A run of train loops as one program, from their last common checkpoint to their end."""

    def __init__(self, loops: Sequence[TrainLoop], hooks: Sequence[Hooks]):
        self.loop, self.hooks, self.periods = loops[0], hooks, hooks[0]
        states, self.records = _resume(loops, hooks)
        data, calls = [loop.data for loop in loops], self.periods.steps_per_call
        self.members = Ensemble(self.loop.step, states, data, self.periods.devices, calls)
        self.state, self.done = self.members.state, int(states[0].step)
        self.feed = self.loop.feed and self.loop.feed(self.done)
        self.earlier = max((one[-1]["seconds"] for one in self.records if one), default=0.0)
        self.started = self.saved = time.monotonic()
        # The second logged period, or the only one, is profiled.
        self.profiled = min(self.done + 2 * self.periods.log_every, self.loop.steps)
        self.broken: dict[int, DivergedError] = {}

    def outcomes(self) -> list[Outcome]:
        """Run all train loops to their end; return each one's last state and records or error."""
        over = self._is_finished()
        for until in () if over else _boundaries(self.done, self.loop.steps, self.periods):
            first = self.done
            metrics, now = self._advance(until), time.monotonic()
            over = self.done == self.loop.steps or self._is_finished()
            stopping = not over and any_process(is_stopping())
            saving = stopping or self._is_saved(over, now)
            finite = self.members.finite(self.state) if saving or over else None
            for i in set(range(len(self.hooks))) - set(self.broken):
                self._report(i, metrics, first, now, over, saving, finite)
            if saving:
                self.saved = time.monotonic()
            if over or len(self.broken) == len(self.hooks):
                break
            if stopping:
                raise stopped()
        ends = [(self.members.state_of(self.state, i), one) for i, one in enumerate(self.records)]
        return [self.broken.get(i, end) for i, end in enumerate(ends)]

    def _advance(self, until: int) -> dict[str, np.ndarray]:
        """Run train loops up to step `until` or a stop signal; return the metrics of every step.

        The host is at most one call ahead of the devices, so that it notices a signal in time.
        """
        first, pending, profiling = self.done, [], False
        repeat, period = self.members.repeat, self.profiled - self.periods.log_every
        with contextlib.ExitStack() as profile:
            for count in _chunks(until - first, repeat.steps_per_call):
                data = self.members.data
                if self.feed is not None:
                    data = self.members.fed([next(self.feed) for _ in range(count)])
                if not repeat.has(count):
                    program = repeat.program(self.state, data, count)
                    check_memory(program, count, self.periods.say)
                if not profiling and (until == self.profiled or first < period < until):
                    # Not earlier: the profile must not contain the compilation.
                    profiling = profile.enter_context(_profile(self.periods))
                self.state, metrics = repeat(self.state, data, count)
                jax.block_until_ready(pending[-1:])
                pending.append(metrics)
                self.done += count
                if is_stopping() and jax.process_count() == 1:
                    break
            return _fetch(pending)

    def _is_finished(self) -> bool:
        """Return whether a train loop's own test `finished(state)` ends it now.

        All processes return the same.
        """
        ends = self.loop.finished
        if ends is None:
            return False
        return bool(broadcast_from_host0([bool(ends(self.members.state_of(self.state, 0)))])[0])

    def _is_saved(self, over: bool, now: float) -> bool:
        """Return whether the train state must be saved as a checkpoint now.

        All processes return the same.
        """
        if over:
            return self.periods.save_last
        elapsed = now - self.saved >= self.periods.save_seconds
        due = _due(self.done, self.periods.save_every)
        return due and bool(broadcast_from_host0([elapsed])[0])

    def _report(
        self,
        i: int,
        metrics: dict[str, np.ndarray],
        first: int,
        now: float,
        over: bool,
        saving: bool,
        finite: np.ndarray | None,
    ) -> None:
        """Check, log and save train loop `i` at its current step, or store its `DivergedError`."""
        values, hooks = self.members.metrics_of(metrics, i), self.hooks[i]
        try:
            _check_loss(values["loss"], first)
            _check_state(True if finite is None else finite[i], self.done)
        except DivergedError as error:
            kept = hooks.saved()
            named = f"{error}; the checkpoint of step {kept[-1]} is kept" if kept else str(error)
            self.broken[i] = DivergedError(named)
            return
        record = {"step": self.done, "seconds": self.earlier + now - self.started}
        record |= {name: float(np.mean(one, dtype=np.float64)) for name, one in values.items()}
        if hooks.watch_every and (over or _due(self.done, hooks.watch_every)):
            record |= hooks.watch(self.members.state_of(self.state, i))
        self.records[i].append(record)
        hooks.log(record, self.loop.steps)
        if saving:
            hooks.save(self.members.state_of(self.state, i), self.records[i])


def _groups(hooks: Sequence[Hooks]) -> list[list[int]]:
    """Group train loops that can run as one program, by their checkpoints; return lists of indices.

    All loops are one group if all have a checkpoint of a common step, or if none has a checkpoint.
    Otherwise loops with the same newest checkpoint form a group.
    """
    steps = [one.saved() for one in hooks]
    if set.intersection(*map(set, steps)) or not any(steps):
        return [list(range(len(hooks)))]
    groups: dict[int, list[int]] = {}
    for i, saved in enumerate(steps):
        groups.setdefault(max(saved, default=0), []).append(i)
    return list(groups.values())


def _resume(
    loops: Sequence[TrainLoop], hooks: Sequence[Hooks]
) -> tuple[list[TrainState], list[list[LogRecord]]]:
    """Restore train loops from a common checkpoint; return states and records to continue from.

    They come from the newest step of which every loop has a readable checkpoint. Without such a
    step the loops begin with their own states and no records.
    """
    pairs = list(zip(loops, hooks, strict=True))
    step, found = int(loops[0].state.step), [(loop.state, []) for loop in loops]
    for saved in sorted(set.intersection(*(set(one.saved()) for one in hooks)), reverse=True):
        restored = [one.restore(loop.state, saved) for loop, one in pairs]
        whole = [one for one in restored if one is not None]
        if len(whole) == len(pairs):
            step, found = saved, whole
            break
    for one, (_, records) in zip(hooks, found, strict=True):
        one.start(step, records)
    return [state for state, _ in found], [list(records) for _, records in found]


def trace_of(records: list[LogRecord]) -> dict[str, np.ndarray]:
    """Convert log records to a trace: a dict from metric to an array with one value per record.

    The value is NaN where a record lacks the metric.
    """
    names = dict.fromkeys(name for record in records for name in record)
    return {name: np.array([one.get(name, np.nan) for one in records]) for name in names}


def records_of(trace: dict[str, np.ndarray]) -> list[LogRecord]:
    """Convert a trace, a dict from metric to array, to a list of log records: undoes `trace_of`."""
    count = len(next(iter(trace.values()), ()))
    return [
        {name: values[i].item() for name, values in trace.items() if not np.isnan(values[i])}
        for i in range(count)
    ]


def _boundaries(done: int, steps: int, hooks: Hooks) -> Iterator[int]:
    """Yield the steps at which a train loop stops on the host to log, save a checkpoint or measure.

    They depend only on the absolute step, so that a resumed run makes the same calls.
    """
    periods = [n for n in (hooks.log_every, hooks.save_every, hooks.watch_every) if n]
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


def _check_loss(loss: np.ndarray, first: int) -> None:
    broken = np.flatnonzero(~np.isfinite(loss))
    if broken.size:
        raise DivergedError(
            f"the loss became {loss[broken[0]]} at step {first + broken[0] + 1}: "
            "lower the learning rate, or look at the data"
        )


def _check_state(finite: bool, done: int) -> None:
    if not finite:
        raise DivergedError(
            f"a parameter or running statistic is no longer finite after step {done}, "
            "though the loss was: lower the learning rate"
        )


@contextlib.contextmanager
def _profile(hooks: Hooks) -> Iterator[bool]:
    if not hooks.profile:
        yield True
        return
    with jax.profiler.trace(hooks.profile):
        yield True
    hooks.say(f"profile: {hooks.profile}")
