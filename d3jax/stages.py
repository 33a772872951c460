"""A stage: a long computation with a folder of its own, taken up where it was left.

The folder holds `model/` once the stage is finished, and `steps/` (rolling checkpoints of its loop) until then.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import checkpoint
from .config import LoopConfig
from .errors import DamagedError
from .journal import Journal, Progress
from .locks import locked
from .metrics import Counts
from .training.loop import Line, Session


class Stage(NamedTuple):
    """What a finished stage left: its arrays, its counts on the test set, its wall seconds (measurements along the way
    included), the lines it logged, and the environment it was computed in."""

    tree: Any
    counts: Counts
    seconds: float
    lines: list[Line]
    environment: dict[str, Any]


class Recorder(NamedTuple):
    """Where stages log, how often they save, and what computes them."""

    loop: LoopConfig
    environment: dict[str, Any]
    journal: Journal
    progress: Progress


def run_stage(
    name: str,
    folder: Path,
    *,
    like: Any,
    work: Callable[[Session], tuple[Any, list[Line]]],
    evaluate: Callable[[Any], Counts],
    recorder: Recorder,
    watch: Callable[[Any], Line] = lambda variables: {},
    watch_every: int = 0,
) -> Stage:
    """The finished stage in `folder`, computed or continued if need be.

    `like` has the structure and shapes of the result; `work(session)` computes (result, logged lines); `evaluate(result)`
    counts on the test set. Another process in the same folder is waited for. Raises `CheckpointError` if the folder holds
    another model's arrays.
    """
    with locked(folder / "lock", recorder.progress.say):
        return _run(name, folder, like, work, evaluate, recorder, watch, watch_every)


def _run(name, folder, like, work, evaluate, recorder, watch, watch_every) -> Stage:
    rolling = checkpoint.Rolling(folder / "steps")
    finished = _finished(folder / "model", like)
    if finished is not None:
        recorder.progress.say(f"{name}: done before, taken from {folder.name}")
        recorder.journal.reset(name, finished.lines)
        rolling.clear()
        return finished

    def log(line: Line, steps: int) -> None:
        recorder.journal.write(name, line)
        recorder.progress.update(line, steps)

    def restore(state: Any) -> tuple[Any, list[Line]] | None:
        found = rolling.restore(state)
        lines = found[1]["lines"] if found else []
        recorder.journal.reset(name, lines)
        if found:
            recorder.progress.say(f"{name}: continues at step {int(found[0].step)}")
        return (found[0], lines) if found else None

    session = Session(
        log=log,
        save=lambda state, lines: rolling.save(int(state.step), state, {"lines": lines}),
        restore=restore,
        watch=watch,
        log_every=recorder.loop.log_every,
        save_every=recorder.loop.save_every,
        watch_every=watch_every,
        steps_per_call=recorder.loop.steps_per_call,
    )
    with recorder.progress.stage(name):
        started = time.monotonic()
        tree, lines = work(session)
        seconds = max(time.monotonic() - started, lines[-1]["seconds"] if lines else 0.0)
        stage = Stage(tree, evaluate(tree), seconds, lines, recorder.environment)
    counts = {key: value.tolist() for key, value in stage.counts._asdict().items()}
    note = {"counts": counts, "seconds": seconds, "lines": lines, "environment": recorder.environment}
    checkpoint.save(folder / "model", tree, note)
    rolling.clear()
    return stage


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Twelve hex digits that name a result by all that made it."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _finished(path: Path, like: Any) -> Stage | None:
    if not path.is_dir():
        return None
    try:
        tree, note = checkpoint.load(path, like)
    except DamagedError as error:
        warnings.warn(f"{error}; computing it again", stacklevel=3)
        checkpoint.set_aside(path)
        return None
    counts = Counts(**{key: np.asarray(value) for key, value in note["counts"].items()})
    return Stage(tree, counts, note["seconds"], note["lines"], note["environment"])
