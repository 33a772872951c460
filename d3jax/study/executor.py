"""A stage: a long computation with a folder of its own, taken up where it was left.

The folder holds `model/` once the stage is finished, `steps/` (rolling checkpoints of its loop) until then, and `failed.json`
where it broke. Stages whose loops share a program run together.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..config.recipes import LoopConfig
from ..core.errors import D3JaxError, DivergedError, OutOfMemoryError
from ..core.types import TrainState
from ..metrics.attack_success import Counts
from ..results.metric_writer import Journal
from ..runtime import checkpoint
from ..runtime.distributed import is_primary
from ..runtime.files import locked_by_all, write_text
from ..runtime.progress import Progress
from ..training.loop import Hooks, LogRecord, TrainLoop, fit_ensemble
from ..training.scan import whole_calls


class Stage(NamedTuple):
    """What a finished stage left: its arrays, its counts on the test set, its wall seconds (measurements along the way
    included), the lines it logged, the environment it was computed in, and how many stages it ran together with, itself
    counted: their seconds are the same seconds."""

    tree: Any
    counts: Counts
    seconds: float
    lines: list[LogRecord]
    environment: dict[str, Any]
    members: int


class Failure(NamedTuple):
    """A stage that broke: one line that says why. Or one that is `unfinished`."""

    message: str
    unfinished: bool = False

    @property
    def status(self) -> str:
        """The line for a table."""
        return f"{'not finished' if self.unfinished else 'failed'}: {self.message}"


Result = Stage | Failure

Done = tuple[Any, list[LogRecord], int]
"""What a loop computed: its tree, the lines it logged, and how many members its program had."""


class Recorder(NamedTuple):
    """Where stages log, how often they save, what computes them, and the folder of their profiles ("": none)."""

    loop: LoopConfig
    environment: dict[str, Any]
    journal: Journal
    progress: Progress
    devices: Sequence[jax.Device]
    profile: str = ""


class Task(NamedTuple):
    """What a stage computes: called `name`, kept in `folder`, a tree with the structure and shapes of `like`.

    `loop()` is its loop and `result(loop, state)` the tree it ends with; or, where it is more than one loop, `work(hooks)`
    computes (tree, logged lines). `evaluate(tree)` counts on the test set. `about` is kept with the tree, for whoever finds it alone.
    """

    name: str
    folder: Path
    like: Any
    evaluate: Callable[[Any], Counts]
    loop: Callable[[], TrainLoop] | None = None
    result: Callable[[TrainLoop, TrainState], Any] = lambda loop, state: state.variables
    work: Callable[[Hooks], tuple[Any, list[LogRecord]]] | None = None
    watch: Callable[[TrainState], LogRecord] = lambda state: {}
    watch_every: int = 0
    about: dict[str, Any] | None = None


def run_stages(tasks: Sequence[Task], recorder: Recorder) -> list[Result]:
    """The stages of `tasks`, finished: those that are not are computed or continued, together where there are several.

    Another process in one of the folders is waited for; of several tasks with one folder, one is computed. What breaks is a
    `Failure` and kept as `failed.json`.
    """
    with contextlib.ExitStack() as held:
        # Everywhere in one order, or two studies could wait for each other in a circle.
        for folder in sorted({task.folder for task in tasks}):
            held.enter_context(locked_by_all(folder / "lock", recorder.progress.say))
        found = {
            task.name: _contained(task, recorder, lambda task=task: _finished(task, recorder))
            for task in tasks
        }
        missing = list({task.folder: task for task in tasks if found[task.name] is None}.values())
        computed = dict(
            zip(
                (task.folder for task in missing),
                _compute(missing, recorder) if missing else [],
                strict=True,
            )
        )
        for task in tasks:
            if found[task.name] is None:
                found[task.name] = computed[task.folder]
                if task not in missing and isinstance(found[task.name], Stage):
                    recorder.journal.reset(task.name, found[task.name].lines)
        return [found[task.name] for task in tasks]


def read_stage(task: Task, recorder: Recorder) -> Result:
    """The stage as it is, nothing computed, nothing moved: `Failure` where it is not finished or cannot be read."""
    path, note = task.folder / "model", task.folder / "failed.json"
    if not path.is_dir():
        if note.exists():
            return Failure(json.loads(note.read_text(encoding="utf8"))["error"])
        return Failure("no model yet", unfinished=True)
    try:
        stage = _stage_of(*checkpoint.load(path, task.like))
    except D3JaxError as error:
        return Failure(str(error))
    recorder.journal.reset(task.name, stage.lines)
    return stage


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Twelve hex digits that name a result by all that made it."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _finished(task: Task, recorder: Recorder) -> Stage | None:
    path = task.folder / "model"
    found = (
        checkpoint.load_or_set_aside(path, task.like, "computing it again")
        if checkpoint.exists(path)
        else None
    )
    if found is None:
        return None
    stage = _stage_of(*found)
    recorder.progress.say(f"{task.name}: done before, taken from {task.folder.name}")
    recorder.journal.reset(task.name, stage.lines)
    checkpoint.Rolling(task.folder / "steps").clear()
    return stage


def _stage_of(tree: Any, note: dict) -> Stage:
    counts = Counts(**{key: np.asarray(value) for key, value in note["counts"].items()})
    return Stage(tree, counts, note["seconds"], note["lines"], note["environment"], note["members"])


def _contained(task: Task, recorder: Recorder, work: Callable[[], Any]) -> Any:
    """What `work` returns, or the `Failure` that came of it: the other stages of a study do not depend on this one.

    Of several processes one alone may have broken, while the rest wait for it: then it must end, and they with it.
    """
    try:
        return work()
    except Exception as error:
        if jax.process_count() > 1 and not isinstance(error, DivergedError):
            raise
        return _failed(task, error, recorder)


def _compute(tasks: Sequence[Task], recorder: Recorder) -> list[Result]:
    """The stages of unfinished tasks, those that are one loop in one program."""
    for task in tasks:
        if is_primary():
            (task.folder / "failed.json").unlink(missing_ok=True)
    with recorder.progress.stage(
        tasks[0].name + (f" and {len(tasks) - 1} more together" if len(tasks) > 1 else "")
    ):
        started = time.monotonic()
        results = (
            _loops(tasks, recorder) if tasks[0].loop else [_work(task, recorder) for task in tasks]
        )
        elapsed = time.monotonic() - started
        finish = functools.partial(_finish, elapsed=elapsed, recorder=recorder)
        results = [
            result
            if isinstance(result, Failure)
            else _contained(task, recorder, functools.partial(finish, task, *result))
            for task, result in zip(tasks, results, strict=True)
        ]
    for task, result in zip(tasks, results, strict=True):
        if isinstance(
            result, Stage
        ):  # only now: a kill in between finds the whole group's checkpoints
            checkpoint.Rolling(task.folder / "steps").clear()
    return results


def _work(task: Task, recorder: Recorder) -> Done | Failure:
    return _contained(task, recorder, lambda: (*task.work(_session(task, recorder)), 1))


def _loops(tasks: Sequence[Task], recorder: Recorder) -> list[Done | Failure]:
    """What each task's loop computed. Where they do not fit the memory together, half of them at a time."""
    loops = [_contained(task, recorder, task.loop) for task in tasks]
    ready = [
        (task, loop) for task, loop in zip(tasks, loops, strict=True) if isinstance(loop, TrainLoop)
    ]
    results = {
        task.name: loop
        for task, loop in zip(tasks, loops, strict=True)
        if isinstance(loop, Failure)
    }
    queue = [ready] if ready else []
    while queue:
        group = queue.pop(0)
        every_hooks = [_session(task, recorder) for task, _ in group]
        try:
            outcomes = fit_ensemble([loop for _, loop in group], every_hooks)
        except OutOfMemoryError as error:
            if len(group) > 1:
                recorder.progress.say(
                    f"{len(group)} together: {error}; trying half of them at a time"
                )
                queue[:0] = [group[: len(group) // 2], group[len(group) // 2 :]]
                continue
            outcomes = [error]
        except Exception as error:
            if jax.process_count() > 1:
                raise
            outcomes = [error] * len(group)
        for (task, loop), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                results[task.name] = _failed(task, outcome, recorder)
            else:
                results[task.name] = (task.result(loop, outcome[0]), outcome[1], len(group))
    return [results[task.name] for task in tasks]


def _finish(
    task: Task,
    tree: Any,
    lines: list[LogRecord],
    members: int,
    *,
    elapsed: float,
    recorder: Recorder,
) -> Stage:
    seconds = max(elapsed, lines[-1]["seconds"] if lines else 0.0)
    stage = Stage(tree, task.evaluate(tree), seconds, lines, recorder.environment, members)
    counts = {key: value.tolist() for key, value in stage.counts._asdict().items()}
    note = {
        "counts": counts,
        "seconds": seconds,
        "lines": lines,
        "environment": recorder.environment,
        "members": members,
    }
    note |= {"about": task.about or {}}
    checkpoint.save(task.folder / "model", tree, note)
    recorder.journal.reset(task.name, lines)
    return stage


def _failed(task: Task, error: Exception, recorder: Recorder) -> Failure:
    known = isinstance(error, D3JaxError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    message = message.strip().splitlines()[0][:500]
    trace = "".join(traceback.format_exception(error))
    if is_primary():
        write_text(
            task.folder / "failed.json",
            json.dumps({"error": message, "traceback": trace}, indent=1),
        )
    recorder.progress.warn(
        f"{task.name} failed: {message}" + ("" if known else f" (see {task.folder}/failed.json)")
    )
    return Failure(message)


def _session(task: Task, recorder: Recorder, part: str = "", watch_every: int = 0) -> Hooks:
    """What surrounds the stage's loop, or one `part` of several: the journal, the terminal, and checkpoints in its folder."""
    rolling, loop = checkpoint.Rolling(task.folder / "steps" / part), recorder.loop
    name = f"{task.name}/{part}" if part else task.name

    def within(inside: str, every: int) -> Hooks:
        return _session(
            task,
            recorder,
            f"{part}/{inside}" if part else inside,
            whole_calls(every, loop.steps_per_call),
        )

    def start(step: int, lines: list[LogRecord]) -> None:
        recorder.journal.reset(name, lines)
        if lines:  # a later one of several loops begins at a step too
            recorder.progress.say(f"{name}: continues at step {step}")

    def log(line: LogRecord, steps: int) -> None:
        recorder.journal.write(name, line)
        recorder.progress.update(line, steps)

    def restore(state: TrainState, step: int) -> tuple[TrainState, list[LogRecord]] | None:
        found = rolling.load(step, state)
        return found and (found[0], found[1]["lines"])

    return Hooks(
        start=start,
        log=log,
        save=lambda state, lines: rolling.save(int(state.step), state, {"lines": lines}),
        saved=rolling.steps,
        restore=restore,
        watch=task.watch,
        say=lambda text: recorder.progress.say(f"{name}: {text}"),
        part=within,
        log_every=loop.log_every,
        save_every=loop.save_every,
        save_seconds=loop.save_seconds,
        save_last=bool(part),
        watch_every=watch_every if part else task.watch_every,
        steps_per_call=loop.steps_per_call,
        devices=recorder.devices,
        profile=recorder.profile and str(Path(recorder.profile) / name),
    )
