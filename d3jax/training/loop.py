"""The one loop: repeat a step over a carried state, log, checkpoint, stop on a loss that is not finite.

A `TrainLoop` is such a loop as data. Jobs that differ in their arrays only run together, as members of one program (`fit_ensemble`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.errors import DivergedError, OutOfMemoryError
from ..core.types import Metrics, TrainState
from ..runtime.distributed import broadcast_from_host0
from .ensemble import Ensemble
from .scan import LOWER, ScannedStep, memory_needed, memory_there, out_of_memory_named
from .step import Step
from .streaming import Feed

LogRecord = dict[str, float]
"""One logged line: `step`, `seconds` since the loop began (resumes included), the mean of every metric since the last line."""


class TrainLoop(NamedTuple):
    """A loop ready to run: `step` from `state` until it has seen `steps` steps, called with `data`.

    Where `feed` is given, `data.batch` is what it brings for each step. `finished(state)` may end the loop before: it is asked
    whenever the host looks in. Such loops run alone.
    """

    step: Step
    state: TrainState
    data: Any
    steps: int
    feed: Feed | None = None
    finished: Callable[[TrainState], bool] | None = None


class Hooks(NamedTuple):
    """What surrounds a loop without changing its numbers. The default logs nothing and saves nothing.

    `start(step, lines)` is called once, with where the loop begins; `log(line, steps)` every `log_every` steps and whenever
    something below is due; `save(state, lines)` every `save_every` steps, but `save_seconds` apart, and never with a broken
    state. `saved()` lists the steps of which there are checkpoints, oldest first, and `restore(state, step)` gives back
    (state, lines) of one, or None where it turns out unreadable. `save_last`: the last state is saved too, as a later loop
    begins with it. `part(name, watch_every)` is the hooks of one of several loops, with checkpoints and lines of its own (`within`).
    `watch(state) -> metrics` is measured every `watch_every` steps (0: never) and behind the last, and added to the line; the loop
    does not see it.
    `say` is told of sizes.

    `steps_per_call` 0 suits the backend, `devices` share the work (none: the default device), and a profile of the
    second logged period, or of the only one, goes to the folder `profile`.
    """

    start: Callable[[int, list[LogRecord]], None] = lambda step, lines: None
    log: Callable[[LogRecord, int], None] = lambda line, steps: None
    save: Callable[[TrainState, list[LogRecord]], None] = lambda state, lines: None
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
    devices: Sequence[jax.Device] = ()
    profile: str = ""

    def within(self, name: str, watch_every: int = 0) -> Hooks:
        """The hooks of one of several loops: no loop's checkpoint may be taken for another's. What a loop moves need not be a model,
        so it is watched only where it says how often."""
        nothing = Hooks()
        if self.part:
            return self.part(name, watch_every)
        return self._replace(save=nothing.save, saved=list, restore=nothing.restore, watch_every=0)


Outcome = tuple[TrainState, list[LogRecord]] | DivergedError
"""The last state and the logged lines of a loop, those before a resume included; or what broke it."""


def fit(loop: TrainLoop, hooks: Hooks = Hooks()) -> tuple[TrainState, list[LogRecord]]:
    """Runs `loop`; returns the last state and the logged lines, those before a resume included.

    Raises `DivergedError` at the first loss that is not finite, or where a state to be kept is not, and `OutOfMemoryError`.
    The caller's arrays stay valid: the state is copied once, then donated from call to call.
    """
    (outcome,) = fit_ensemble([loop], [hooks])
    if isinstance(outcome, DivergedError):
        raise outcome
    return outcome


def fit_ensemble(loops: Sequence[TrainLoop], every_hooks: Sequence[Hooks]) -> list[Outcome]:
    """Runs loops together, vmapped into one program; each gets the numbers it would get alone, to rounding.

    The loops have one `step` function in common (the first one's is taken), states and data of the same shapes, and the same
    number of steps; the every_hooks have the same periods. Arrays of `data` that all loops share are kept once. A loop that
    diverges is out; the others go on. Jobs that were left at different steps, with no checkpoint of the same, go on in groups
    of those that were left at the same. Raises `OutOfMemoryError`, and `ValueError` for several loops of which one is fed or may
    end before the others.
    """
    if len(loops) > 1 and any(loop.feed or loop.finished for loop in loops):
        raise ValueError("a loop with a feed, or with an end of its own, runs alone")
    outcomes: list[Outcome | None] = [None] * len(loops)
    for group in _groups(every_hooks):
        with out_of_memory_named():
            found = _fit([loops[i] for i in group], [every_hooks[i] for i in group])
        for i, outcome in zip(group, found, strict=True):
            outcomes[i] = outcome
    return outcomes


def _fit(loops: Sequence[TrainLoop], every_hooks: Sequence[Hooks]) -> list[Outcome]:
    hooks, steps = every_hooks[0], loops[0].steps
    states, lines = _resume(loops, every_hooks)
    members = Ensemble(
        loops[0].step, states, [loop.data for loop in loops], hooks.devices, hooks.steps_per_call
    )
    state, done = members.state, int(states[0].step)
    feed = loops[0].feed and loops[0].feed(done)
    earlier = max((line[-1]["seconds"] for line in lines if line), default=0.0)
    started = saved = time.monotonic()
    profiled = min(done + 2 * hooks.log_every, steps)  # where the second logged period ends
    broken: dict[int, DivergedError] = {}
    ends = loops[0].finished
    finished = lambda state: (
        ends is not None and bool(broadcast_from_host0([ends(members.state_of(state, 0))])[0])
    )
    for until in () if finished(state) else _boundaries(done, steps, hooks):
        first, pending, tracing = done, [], False
        with contextlib.ExitStack() as trace:
            for count in _chunks(until - done, members.repeat.steps_per_call):
                data = (
                    members.data
                    if feed is None
                    else members.fed([next(feed) for _ in range(count)])
                )
                _check_memory(members.repeat, state, data, count, hooks)
                if not tracing and (
                    until == profiled or first < profiled - hooks.log_every < until
                ):
                    tracing = trace.enter_context(
                        _profile(hooks)
                    )  # now that the program is compiled
                state, metrics = members.repeat(state, data, count)
                pending.append(metrics)
                done += count
            stacked = _fetch(pending)
        now = time.monotonic()
        over = done == steps or finished(state)
        saving = (
            _due(done, hooks.save_every)
            and not over
            and bool(broadcast_from_host0([now - saved >= hooks.save_seconds])[0])
        )
        saving = saving or (over and hooks.save_last)
        finite = members.finite(state) if saving or over else None
        for i in set(range(len(loops))) - set(broken):
            mine = members.metrics_of(stacked, i)
            try:
                _check_loss(mine["loss"], first)
                _check_state(True if finite is None else finite[i], done)
            except DivergedError as error:
                kept = every_hooks[i].saved()
                broken[i] = (
                    DivergedError(f"{error}; the checkpoint of step {kept[-1]} is kept")
                    if kept
                    else error
                )
                continue
            line = {"step": done, "seconds": earlier + now - started}
            line |= {
                name: float(np.mean(values, dtype=np.float64)) for name, values in mine.items()
            }
            if hooks.watch_every and (over or _due(done, hooks.watch_every)):
                line |= every_hooks[i].watch(members.state_of(state, i))
            lines[i].append(line)
            every_hooks[i].log(line, steps)
            if saving:
                every_hooks[i].save(members.state_of(state, i), lines[i])
        if saving:
            saved = time.monotonic()
        if over or len(broken) == len(loops):
            break
    return [broken.get(i) or (members.state_of(state, i), lines[i]) for i in range(len(loops))]


def _groups(every_hooks: Sequence[Hooks]) -> list[list[int]]:
    """Which loops go on together: all, if there is a step of which each has a checkpoint, or none has any; else those whose
    newest is the same."""
    steps = [hooks.saved() for hooks in every_hooks]
    if set.intersection(*map(set, steps)) or not any(steps):
        return [list(range(len(every_hooks)))]
    groups: dict[int, list[int]] = {}
    for i, mine in enumerate(steps):
        groups.setdefault(max(mine, default=0), []).append(i)
    return list(groups.values())


def _resume(
    loops: Sequence[TrainLoop], every_hooks: Sequence[Hooks]
) -> tuple[list[TrainState], list[list[LogRecord]]]:
    """States and lines to go on from: those of the newest step of which every loop has a checkpoint that can be read."""
    for step in sorted(
        set.intersection(*(set(hooks.saved()) for hooks in every_hooks)), reverse=True
    ):
        found = [
            hooks.restore(loop.state, step) for loop, hooks in zip(loops, every_hooks, strict=True)
        ]
        if None not in found:
            break
    else:
        step, found = int(loops[0].state.step), [(loop.state, []) for loop in loops]
    for hooks, (_, lines) in zip(every_hooks, found, strict=True):
        hooks.start(step, lines)
    return [state for state, _ in found], [list(lines) for _, lines in found]


def trace_of(lines: list[LogRecord]) -> dict[str, np.ndarray]:
    """Lines as one array a metric, NaN where a line lacks it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in names}


def lines_of(trace: dict[str, np.ndarray]) -> list[LogRecord]:
    """The inverse of `trace_of`."""
    count = len(next(iter(trace.values()), ()))
    return [
        {name: values[i].item() for name, values in trace.items() if not np.isnan(values[i])}
        for i in range(count)
    ]


def _boundaries(done: int, steps: int, hooks: Hooks) -> Iterator[int]:
    """Steps at which the host looks in. They depend on the absolute step only, so a resumed run makes the same calls."""
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
            f"the loss became {loss[broken[0]]} at step {first + broken[0] + 1}: lower the learning rate, or look at the data"
        )


def _check_state(finite: bool, done: int) -> None:
    if not finite:
        raise DivergedError(
            f"a parameter or running statistic is no longer finite after step {done}, though the loss was: lower the "
            "learning rate"
        )


def _check_memory(
    repeat: ScannedStep, state: TrainState, data: Any, count: int, hooks: Hooks
) -> None:
    """Before the first call of a program: says what memory it takes, and raises where the device has less."""
    if repeat.has(count):
        return
    needed = memory_needed(repeat.program(state, data, count))
    if needed is None:
        return
    there, kind = memory_there(), jax.local_devices()[0].device_kind
    amount = f"{needed / 2**30:.2f} GiB" if needed >= 2**30 else f"{max(1, needed / 2**20):.0f} MiB"
    if there is None:
        hooks.say(f"needs {amount} of memory")
        return
    hooks.say(f"needs {amount} of the {there / 2**30:.1f} GiB on {kind}")
    if broadcast_from_host0([needed > there])[0]:
        raise OutOfMemoryError(
            f"a call of {count} steps needs {amount}, {kind} has {there / 2**30:.1f}: {LOWER}"
        )


@contextlib.contextmanager
def _profile(hooks: Hooks) -> Iterator[bool]:
    if not hooks.profile:
        yield True
        return
    with jax.profiler.trace(hooks.profile):
        yield True
    hooks.say(f"profile: {hooks.profile}")
