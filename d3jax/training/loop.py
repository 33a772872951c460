"""The one loop: repeat a step over a carried state, log, checkpoint, stop on a loss that is not finite.

A `Job` is such a loop as data. Jobs that differ in their arrays only run together, as members of one program (`fit_members`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..base import Metrics, TrainState
from ..errors import DivergedError, OutOfMemoryError
from ..sharding import agree
from .members import Members
from .repeat import LOWER, Repeat, memory_needed, memory_there, out_of_memory_named
from .step import Step
from .streaming import Feed

Line = dict[str, float]
"""One logged line: `step`, `seconds` since the loop began (resumes included), the mean of every metric since the last line."""


class Job(NamedTuple):
    """A loop ready to run: `step` from `state` until it has seen `steps` steps, called with `data`.

    Where `feed` is given, `data.batch` is what it brings for each step. `finished(state)` may end the loop before: it is asked
    whenever the host looks in. Such jobs run alone.
    """

    step: Step
    state: TrainState
    data: Any
    steps: int
    feed: Feed | None = None
    finished: Callable[[TrainState], bool] | None = None


class Session(NamedTuple):
    """What surrounds a loop without changing its numbers. The default logs nothing and saves nothing.

    `start(step, lines)` is called once, with where the loop begins; `log(line, steps)` every `log_every` steps and whenever
    something below is due; `save(state, lines)` every `save_every` steps, but `save_seconds` apart, and never with a broken
    state. `saved()` lists the steps of which there are checkpoints, oldest first, and `restore(state, step)` gives back
    (state, lines) of one, or None where it turns out unreadable. `save_last`: the last state is saved too, as a later loop
    begins with it. `part(name, watch_every)` is the session of one of several loops, with checkpoints and lines of its own (`within`).
    `watch(state) -> metrics` is measured every `watch_every` steps (0: never) and behind the last, and added to the line; the loop
    does not see it.
    `say` is told of sizes.

    `steps_per_call` 0 suits the backend, `devices` share the work (none: the default device), and a profile of the
    second logged period, or of the only one, goes to the folder `profile`.
    """

    start: Callable[[int, list[Line]], None] = lambda step, lines: None
    log: Callable[[Line, int], None] = lambda line, steps: None
    save: Callable[[TrainState, list[Line]], None] = lambda state, lines: None
    saved: Callable[[], list[int]] = list
    restore: Callable[[TrainState, int], tuple[TrainState, list[Line]] | None] = lambda state, step: None
    watch: Callable[[TrainState], Line] = lambda state: {}
    say: Callable[[str], None] = lambda text: None
    part: Callable[[str, int], Session] | None = None
    log_every: int = 25
    save_every: int = 0
    save_seconds: float = 0.0
    save_last: bool = False
    watch_every: int = 0
    steps_per_call: int = 0
    devices: Sequence[jax.Device] = ()
    profile: str = ""

    def within(self, name: str, watch_every: int = 0) -> Session:
        """The session of one of several loops: no loop's checkpoint may be taken for another's. What a loop moves need not be a model,
        so it is watched only where it says how often."""
        nothing = Session()
        if self.part:
            return self.part(name, watch_every)
        return self._replace(save=nothing.save, saved=list, restore=nothing.restore, watch_every=0)


Outcome = tuple[TrainState, list[Line]] | DivergedError
"""The last state and the logged lines of a job, those before a resume included; or what broke it."""


def fit(job: Job, session: Session = Session()) -> tuple[TrainState, list[Line]]:
    """Runs `job`; returns the last state and the logged lines, those before a resume included.

    Raises `DivergedError` at the first loss that is not finite, or where a state to be kept is not, and `OutOfMemoryError`.
    The caller's arrays stay valid: the state is copied once, then donated from call to call.
    """
    (outcome,) = fit_members([job], [session])
    if isinstance(outcome, DivergedError):
        raise outcome
    return outcome


def fit_members(jobs: Sequence[Job], sessions: Sequence[Session]) -> list[Outcome]:
    """Runs jobs together, vmapped into one program; each gets the numbers it would get alone, to rounding.

    The jobs have one `step` function in common (the first one's is taken), states and data of the same shapes, and the same
    number of steps; the sessions have the same periods. Arrays of `data` that all jobs share are kept once. A job that
    diverges is out; the others go on. Jobs that were left at different steps, with no checkpoint of the same, go on in groups
    of those that were left at the same. Raises `OutOfMemoryError`, and `ValueError` for several jobs of which one is fed or may
    end before the others.
    """
    if len(jobs) > 1 and any(job.feed or job.finished for job in jobs):
        raise ValueError("a job with a feed, or with an end of its own, runs alone")
    outcomes: list[Outcome | None] = [None] * len(jobs)
    for group in _groups(sessions):
        with out_of_memory_named():
            found = _fit([jobs[i] for i in group], [sessions[i] for i in group])
        for i, outcome in zip(group, found, strict=True):
            outcomes[i] = outcome
    return outcomes


def _fit(jobs: Sequence[Job], sessions: Sequence[Session]) -> list[Outcome]:
    session, steps = sessions[0], jobs[0].steps
    states, lines = _resume(jobs, sessions)
    members = Members(jobs[0].step, states, [job.data for job in jobs], session.devices, session.steps_per_call)
    state, done = members.state, int(states[0].step)
    feed = jobs[0].feed and jobs[0].feed(done)
    earlier = max((line[-1]["seconds"] for line in lines if line), default=0.0)
    started = saved = time.monotonic()
    profiled = min(done + 2 * session.log_every, steps)  # where the second logged period ends
    broken: dict[int, DivergedError] = {}
    ends = jobs[0].finished
    finished = lambda state: ends is not None and bool(agree([ends(members.state_of(state, 0))])[0])
    for until in () if finished(state) else _boundaries(done, steps, session):
        first, pending, tracing = done, [], False
        with contextlib.ExitStack() as trace:
            for count in _chunks(until - done, members.repeat.steps_per_call):
                data = members.data if feed is None else members.fed([next(feed) for _ in range(count)])
                _check_memory(members.repeat, state, data, count, session)
                if not tracing and (until == profiled or first < profiled - session.log_every < until):
                    tracing = trace.enter_context(_profile(session))  # now that the program is compiled
                state, metrics = members.repeat(state, data, count)
                pending.append(metrics)
                done += count
            stacked = _fetch(pending)
        now = time.monotonic()
        over = done == steps or finished(state)
        saving = _due(done, session.save_every) and not over and bool(agree([now - saved >= session.save_seconds])[0])
        saving = saving or (over and session.save_last)
        finite = members.finite(state) if saving or over else None
        for i in set(range(len(jobs))) - set(broken):
            mine = members.metrics_of(stacked, i)
            try:
                _check_loss(mine["loss"], first)
                _check_state(True if finite is None else finite[i], done)
            except DivergedError as error:
                kept = sessions[i].saved()
                broken[i] = DivergedError(f"{error}; the checkpoint of step {kept[-1]} is kept") if kept else error
                continue
            line = {"step": done, "seconds": earlier + now - started}
            line |= {name: float(np.mean(values, dtype=np.float64)) for name, values in mine.items()}
            if session.watch_every and (over or _due(done, session.watch_every)):
                line |= sessions[i].watch(members.state_of(state, i))
            lines[i].append(line)
            sessions[i].log(line, steps)
            if saving:
                sessions[i].save(members.state_of(state, i), lines[i])
        if saving:
            saved = time.monotonic()
        if over or len(broken) == len(jobs):
            break
    return [broken.get(i) or (members.state_of(state, i), lines[i]) for i in range(len(jobs))]


def _groups(sessions: Sequence[Session]) -> list[list[int]]:
    """Which jobs go on together: all, if there is a step of which each has a checkpoint, or none has any; else those whose
    newest is the same."""
    steps = [session.saved() for session in sessions]
    if set.intersection(*map(set, steps)) or not any(steps):
        return [list(range(len(sessions)))]
    groups: dict[int, list[int]] = {}
    for i, mine in enumerate(steps):
        groups.setdefault(max(mine, default=0), []).append(i)
    return list(groups.values())


def _resume(jobs: Sequence[Job], sessions: Sequence[Session]) -> tuple[list[TrainState], list[list[Line]]]:
    """States and lines to go on from: those of the newest step of which every job has a checkpoint that can be read."""
    for step in sorted(set.intersection(*(set(session.saved()) for session in sessions)), reverse=True):
        found = [session.restore(job.state, step) for job, session in zip(jobs, sessions, strict=True)]
        if None not in found:
            break
    else:
        step, found = int(jobs[0].state.step), [(job.state, []) for job in jobs]
    for session, (_, lines) in zip(sessions, found, strict=True):
        session.start(step, lines)
    return [state for state, _ in found], [list(lines) for _, lines in found]


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


def _check_memory(repeat: Repeat, state: TrainState, data: Any, count: int, session: Session) -> None:
    """Before the first call of a program: says what memory it takes, and raises where the device has less."""
    if repeat.has(count):
        return
    needed = memory_needed(repeat.program(state, data, count))
    if needed is None:
        return
    there, kind = memory_there(), jax.local_devices()[0].device_kind
    amount = f"{needed / 2**30:.2f} GiB" if needed >= 2**30 else f"{max(1, needed / 2**20):.0f} MiB"
    if there is None:
        session.say(f"needs {amount} of memory")
        return
    session.say(f"needs {amount} of the {there / 2**30:.1f} GiB on {kind}")
    if agree([needed > there])[0]:
        raise OutOfMemoryError(f"a call of {count} steps needs {amount}, {kind} has {there / 2**30:.1f}: {LOWER}")


@contextlib.contextmanager
def _profile(session: Session) -> Iterator[bool]:
    if not session.profile:
        yield True
        return
    with jax.profiler.trace(session.profile):
        yield True
    session.say(f"profile: {session.profile}")
