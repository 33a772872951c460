"""A stage: a long computation with a folder of its own, taken up where it was left.

The folder holds `model/` once the stage is finished, `steps/` (rolling checkpoints of its loop) until then, and `failed.json`
where it broke. Stages whose loops share a program run together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from . import checkpoint
from .base import TrainState
from .config import LoopConfig
from .errors import D3JaxError
from .journal import Journal, Progress
from .locks import locked
from .metrics import Counts
from .report import write_whole
from .sharding import is_first
from .training.loop import Job, Line, Session, fit_members


class Stage(NamedTuple):
    """What a finished stage left: its arrays, its counts on the test set, its wall seconds (measurements along the way
    included), the lines it logged, the environment it was computed in, and how many stages it ran together with, itself
    counted: their seconds are the same seconds."""

    tree: Any
    counts: Counts
    seconds: float
    lines: list[Line]
    environment: dict[str, Any]
    members: int


class Failure(NamedTuple):
    """A stage that broke, or is not there: one line that says why."""

    message: str


Result = Stage | Failure


class Recorder(NamedTuple):
    """Where stages log, how often they save, what computes them, and where a profile goes ("": nowhere)."""

    loop: LoopConfig
    environment: dict[str, Any]
    journal: Journal
    progress: Progress
    devices: Sequence[jax.Device]
    profile: str = ""


class Task(NamedTuple):
    """What a stage computes: called `name`, kept in `folder`, a tree with the structure and shapes of `like`.

    `job()` is its loop and `result(job, state)` the tree it ends with; or, where it is more than one loop, `work(session)`
    computes (tree, logged lines). `evaluate(tree)` counts on the test set.
    """

    name: str
    folder: Path
    like: Any
    evaluate: Callable[[Any], Counts]
    job: Callable[[], Job] | None = None
    result: Callable[[Job, TrainState], Any] = lambda job, state: state.variables
    work: Callable[[Session], tuple[Any, list[Line]]] | None = None
    watch: Callable[[Any], Line] = lambda variables: {}
    watch_every: int = 0


def run_stages(tasks: Sequence[Task], recorder: Recorder) -> list[Result]:
    """The stages of `tasks`, finished: those that are not are computed or continued, together where there are several.

    Another process in one of the folders is waited for. What breaks is a `Failure` and kept as `failed.json`.
    """
    with contextlib.ExitStack() as held:
        # Everywhere in one order, or two studies could wait for each other in a circle.
        for folder in sorted({task.folder for task in tasks}) if is_first() else ():
            held.enter_context(locked(folder / "lock", recorder.progress.say))
        found = {task.name: _finished(task, recorder) for task in tasks}
        missing = [task for task in tasks if found[task.name] is None]
        if missing:
            found |= dict(zip((task.name for task in missing), _compute(missing, recorder), strict=True))
        return [found[task.name] for task in tasks]


def read_stage(task: Task, recorder: Recorder) -> Result:
    """The stage as it is, nothing computed: `Failure` where it is not finished."""
    note = task.folder / "failed.json"
    try:
        finished = _finished(task, recorder)
    except D3JaxError as error:
        return Failure(str(error))
    if finished is not None:
        return finished
    return Failure(json.loads(note.read_text(encoding="utf8"))["error"] if note.exists() else "not finished yet")


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Twelve hex digits that name a result by all that made it."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _finished(task: Task, recorder: Recorder) -> Stage | None:
    path = task.folder / "model"
    found = checkpoint.load_or_set_aside(path, task.like, "computing it again") if checkpoint.exists(path) else None
    if found is None:
        return None
    tree, note = found
    counts = Counts(**{key: np.asarray(value) for key, value in note["counts"].items()})
    stage = Stage(tree, counts, note["seconds"], note["lines"], note["environment"], note["members"])
    recorder.progress.say(f"{task.name}: done before, taken from {task.folder.name}")
    recorder.journal.reset(task.name, stage.lines)
    checkpoint.Rolling(task.folder / "steps").clear()
    return stage


def _compute(tasks: Sequence[Task], recorder: Recorder) -> list[Result]:
    name = tasks[0].name + (f" and {len(tasks) - 1} more together" if len(tasks) > 1 else "")
    for task in tasks:
        if is_first():
            (task.folder / "failed.json").unlink(missing_ok=True)
    with recorder.progress.stage(name):
        started = time.monotonic()
        try:
            outcomes = _run(tasks, [_session(task, recorder) for task in tasks])
        except Exception as error:  # noqa: BLE001 (whatever it is, a study's other stages do not depend on it)
            return [_failed(task, error, recorder) for task in tasks]
        elapsed = time.monotonic() - started
        return [_finish(*pair, elapsed, len(tasks), recorder) for pair in zip(tasks, outcomes, strict=True)]


def _run(tasks: Sequence[Task], sessions: Sequence[Session]) -> list[tuple[Any, list[Line]] | Exception]:
    if tasks[0].job is None:
        return [task.work(session) for task, session in zip(tasks, sessions, strict=True)]
    jobs = [task.job() for task in tasks]
    return [
        outcome if isinstance(outcome, Exception) else (task.result(job, outcome[0]), outcome[1])
        for task, job, outcome in zip(tasks, jobs, fit_members(jobs, sessions), strict=True)
    ]


def _finish(task: Task, outcome: Any, elapsed: float, members: int, recorder: Recorder) -> Result:
    if isinstance(outcome, Exception):
        return _failed(task, outcome, recorder)
    tree, lines = outcome
    seconds = max(elapsed, lines[-1]["seconds"] if lines else 0.0)
    try:
        stage = Stage(tree, task.evaluate(tree), seconds, lines, recorder.environment, members)
        counts = {key: value.tolist() for key, value in stage.counts._asdict().items()}
        note = {"counts": counts, "seconds": seconds, "lines": lines, "environment": recorder.environment, "members": members}
        checkpoint.save(task.folder / "model", tree, note)
    except Exception as error:  # noqa: BLE001 (likewise)
        return _failed(task, error, recorder)
    checkpoint.Rolling(task.folder / "steps").clear()
    return stage


def _failed(task: Task, error: Exception, recorder: Recorder) -> Failure:
    known = isinstance(error, D3JaxError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    message = message.strip().splitlines()[0][:500]
    trace = "".join(traceback.format_exception(error))
    if is_first():
        write_whole(task.folder / "failed.json", json.dumps({"error": message, "traceback": trace}, indent=1))
    recorder.progress.warn(f"{task.name} failed: {message}" + ("" if known else f" (see {task.folder}/failed.json)"))
    return Failure(message)


def _session(task: Task, recorder: Recorder) -> Session:
    """What surrounds the stage's loop: the journal, the terminal, and checkpoints in its folder."""
    rolling, loop = checkpoint.Rolling(task.folder / "steps"), recorder.loop

    def start(step: int, lines: list[Line]) -> None:
        recorder.journal.reset(task.name, lines)
        if step:
            recorder.progress.say(f"{task.name}: continues at step {step}")

    def log(line: Line, steps: int) -> None:
        recorder.journal.write(task.name, line)
        recorder.progress.update(line, steps)

    def restore(state: TrainState, step: int) -> tuple[TrainState, list[Line]] | None:
        found = rolling.load(step, state)
        return found and (found[0], found[1]["lines"])

    return Session(
        start=start,
        log=log,
        save=lambda state, lines: rolling.save(int(state.step), state, {"lines": lines}),
        saved=rolling.steps,
        restore=restore,
        watch=task.watch,
        say=lambda text: recorder.progress.say(f"{task.name}: {text}"),
        log_every=loop.log_every,
        save_every=loop.save_every,
        save_seconds=loop.save_seconds,
        watch_every=task.watch_every,
        steps_per_call=loop.steps_per_call,
        devices=recorder.devices,
        profile=recorder.profile,
    )
