"""Runs nodes: finished ones are taken as they are, others computed or continued, together.

A node's folder holds `model/` once it is finished, `steps/` (rolling checkpoints of its loop) until
then, and `failed.json` where it broke. Another process in the folder is waited for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.errors import D3JaxError, DivergedError, OutOfMemoryError
from ..core.types import TrainState
from ..metrics.attack_success import Counts
from ..results.artifacts import node_folder
from ..results.metric_writer import MetricWriter
from ..runtime import checkpoint
from ..runtime.distributed import is_primary
from ..runtime.files import write_text
from ..runtime.locks import locked_by_all
from ..training.loop import Hooks, LogRecord, TrainLoop, fit_ensemble
from ..training.scan import whole_calls
from .nodes.base import Artifact, Failure, Inputs, Node, Result


class Execution(NamedTuple):
    """A node with its inputs, and where it logs."""

    node: Node
    inputs: Inputs
    writer: MetricWriter


Computed = tuple[Any, list[LogRecord], int]
"""A tree, the records logged, and how many members its program had."""


def make_execution(node: Node, inputs: Inputs) -> Execution:
    """Return a node with its inputs and the writer of its metrics."""
    context = node.context
    writer = MetricWriter(
        node_folder(context.workdir, node.name),
        sinks=context.config.loop.sinks,
        run_name=node.name,
        active=is_primary(),
    )
    return Execution(node, inputs, writer)


def run_together(executions: Sequence[Execution]) -> list[Result]:
    """Return what the nodes of a group left: those that are not finished are computed.

    Of several nodes with one folder, one is computed. What breaks is a `Failure`, kept as
    failed.json.
    """
    say = executions[0].node.context.progress.say
    with contextlib.ExitStack() as held:
        # Everywhere in one order, or two studies could wait for each other in a circle.
        for folder in sorted({execution.node.folder for execution in executions}):
            held.enter_context(locked_by_all(folder / "lock", say))
        found: dict[str, Result | None] = {}
        for execution in executions:
            found[execution.node.name] = contained(execution.node, _finished, execution)
        missing = {
            execution.node.folder: execution
            for execution in executions
            if found[execution.node.name] is None
        }
        if missing:
            results = _compute(list(missing.values()))
            computed = dict(zip(missing, results, strict=True))
            found |= {
                execution.node.name: computed[execution.node.folder]
                for execution in executions
                if found[execution.node.name] is None
            }
    for execution in executions:
        result = found[execution.node.name]
        if isinstance(result, Artifact):
            execution.writer.reset("", result.records)
        execution.writer.close()
    return [found[execution.node.name] for execution in executions]


def read_node(node: Node) -> Result:
    """Return a node as it is, nothing computed: a `Failure` where it cannot be read."""
    path, note = node.folder / "model", node.folder / "failed.json"
    if path.is_dir():
        try:
            return _artifact(node, *checkpoint.load(path, node.like()))
        except D3JaxError as error:
            return Failure(str(error))
    if note.exists():
        return Failure(json.loads(note.read_text(encoding="utf8"))["error"])
    return Failure("no model yet", unfinished=True)


def _finished(execution: Execution) -> Artifact | None:
    """Return what is there already; None where there is nothing, or it is damaged."""
    node, path = execution.node, execution.node.folder / "model"
    if not checkpoint.exists(path):
        return None
    found = checkpoint.load_or_set_aside(path, node.like(), "computing it again")
    if found is None:
        return None
    node.context.progress.say(f"{node.name}: done before, taken from {node.folder.name}")
    checkpoint.Rolling(node.folder / "steps").clear()
    return _artifact(node, *found)


def _artifact(node: Node, tree: Any, note: dict[str, Any]) -> Artifact:
    counts = note["counts"]
    counts = counts and Counts(**{key: np.asarray(values) for key, values in counts.items()})
    kept = (note["seconds"], note["records"], note["environment"], note["members"])
    artifact = Artifact(functools.partial(_read_tree, node), counts, *kept)
    artifact.tree = tree
    return artifact


def _read_tree(node: Node) -> Any:
    return checkpoint.load(node.folder / "model", node.like())[0]


def contained(node: Node, work: Callable[..., Any], *given: Any) -> Any:
    """Return what `work` returns, or the `Failure` that came of it: other nodes go on.

    Of several processes one alone may have broken, while the rest wait for it: then it must end.
    """
    try:
        return work(*given)
    except Exception as error:
        if jax.process_count() > 1 and not isinstance(error, DivergedError):
            raise
        return failed(node, error)


def failed(node: Node, error: Exception) -> Failure:
    """Return a failure, kept in the node's folder and said."""
    known = isinstance(error, D3JaxError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    message = message.strip().splitlines()[0][:500]
    trace = "".join(traceback.format_exception(error))
    if is_primary():
        text = json.dumps({"error": message, "traceback": trace}, indent=1)
        write_text(node.folder / "failed.json", text)
    where = "" if known else f" (see {node.folder}/failed.json)"
    node.context.progress.warn(f"{node.name} failed: {message}{where}")
    return Failure(message)


def _compute(executions: Sequence[Execution]) -> list[Result]:
    """Return the results of unfinished nodes, those that are one loop in one program."""
    first = executions[0].node
    for execution in executions:
        if is_primary():
            (execution.node.folder / "failed.json").unlink(missing_ok=True)
    more = f" and {len(executions) - 1} more together" if len(executions) > 1 else ""
    with first.context.progress.stage(first.name + more):
        started = time.monotonic()
        if first.is_loop:
            computed = _loops(executions)
        else:
            computed = [contained(execution.node, _work, execution) for execution in executions]
        elapsed = time.monotonic() - started
        results = [
            done
            if isinstance(done, Failure)
            else contained(execution.node, _finish, execution, *done, elapsed)
            for execution, done in zip(executions, computed, strict=True)
        ]
    for execution, result in zip(executions, results, strict=True):
        if isinstance(result, Artifact):  # only now: a kill in between finds all checkpoints
            checkpoint.Rolling(execution.node.folder / "steps").clear()
    return results


def _work(execution: Execution) -> Computed:
    return (*execution.node.compute(execution.inputs, _hooks(execution)), 1)


def _loops(executions: Sequence[Execution]) -> list[Computed | Failure]:
    """Return what each node's loop computed, half of them at a time where memory is short."""
    loops = [
        contained(execution.node, execution.node.loop, execution.inputs) for execution in executions
    ]
    pairs = list(zip(executions, loops, strict=True))
    results = {execution.node.name: loop for execution, loop in pairs if isinstance(loop, Failure)}
    ready = [(execution, loop) for execution, loop in pairs if isinstance(loop, TrainLoop)]
    queue = [ready] if ready else []
    while queue:
        group = queue.pop(0)
        try:
            outcomes = fit_ensemble(
                [loop for _, loop in group], [_hooks(execution) for execution, _ in group]
            )
        except OutOfMemoryError as error:
            if len(group) > 1:
                say = group[0][0].node.context.progress.say
                say(f"{len(group)} together: {error}; trying half of them at a time")
                half = len(group) // 2
                queue[:0] = [group[:half], group[half:]]
                continue
            outcomes = [error]
        except Exception as error:
            if jax.process_count() > 1:
                raise
            outcomes = [error] * len(group)
        for (execution, loop), outcome in zip(group, outcomes, strict=True):
            results[execution.node.name] = _outcome(execution.node, loop, outcome, len(group))
    return [results[execution.node.name] for execution in executions]


def _outcome(node: Node, loop: TrainLoop, outcome: Any, members: int) -> Computed | Failure:
    if isinstance(outcome, Exception):
        return failed(node, outcome)
    state, records = outcome
    return node.tree_of(loop, state), records, members


def _finish(
    execution: Execution, tree: Any, records: list[LogRecord], members: int, elapsed: float
) -> Artifact:
    """Return the artifact of what was computed, counted and saved."""
    node = execution.node
    seconds = max(elapsed, records[-1]["seconds"] if records else 0.0)
    counts = node.count(execution.inputs, tree)
    note = {
        "counts": counts and {key: values.tolist() for key, values in counts._asdict().items()},
        "seconds": seconds,
        "records": records,
        "environment": node.context.environment,
        "members": members,
        # By these a later study knows the trigger of a model it finds alone.
        "about": {key: node.run.recipe[key] for key in ("attack", "settings")},
    }
    checkpoint.save(node.folder / "model", tree, note)
    return _artifact(node, tree, note)


def _hooks(execution: Execution, part: str = "", watch_every: int = 0) -> Hooks:
    """Return what surrounds a node's loop, or one `part` of several."""
    node, writer = execution.node, execution.writer
    context, loop = node.context, node.context.config.loop
    rolling = checkpoint.Rolling(node.folder / "steps" / part)
    name = f"{node.name}/{part}" if part else node.name
    progress = context.progress

    def within(inside: str, every: int) -> Hooks:
        inner = f"{part}/{inside}" if part else inside
        return _hooks(execution, inner, whole_calls(every, loop.steps_per_call))

    def start(step: int, records: list[LogRecord]) -> None:
        writer.reset(part, records)
        if records:  # a later one of several loops begins at a step too
            progress.say(f"{name}: continues at step {step}")

    def log(record: LogRecord, steps: int) -> None:
        writer.write(part, record)
        progress.update(record, steps)

    def save(state: TrainState, records: list[LogRecord]) -> None:
        rolling.save(int(state.step), state, {"lines": records})

    def restore(state: TrainState, step: int) -> tuple[TrainState, list[LogRecord]] | None:
        found = rolling.load(step, state)
        return found and (found[0], found[1]["lines"])

    def say(text: str) -> None:
        progress.say(f"{name}: {text}")

    return Hooks(
        start=start,
        log=log,
        save=save,
        saved=rolling.steps,
        restore=restore,
        watch=node.watch(execution.inputs),
        say=say,
        part=within,
        log_every=loop.log_every,
        save_every=loop.save_every,
        save_seconds=loop.save_seconds,
        save_last=bool(part),
        watch_every=watch_every if part else node.watch_every,
        steps_per_call=loop.steps_per_call,
        devices=context.devices,
        profile=context.profile and str(Path(context.profile) / name),
    )
