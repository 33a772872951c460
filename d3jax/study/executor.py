"""The executor of a study's nodes: it reuses finished nodes, and computes or resumes the others.

A node's folder holds `model/` once the node is finished. Until then it holds `steps/`, the rolling
checkpoints of its loop, and after an error `failed.json`. If another process works in the folder,
the executor waits for it.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..core.errors import CheckpointError, D3JaxError, DivergedError, OutOfMemoryError, StoppedError
from ..core.paths import user_path
from ..core.records import LogRecord
from ..core.types import TrainState
from ..results.artifacts import node_folder
from ..results.metric_writer import MetricWriter
from ..runtime import checkpoint
from ..runtime.distributed import is_primary
from ..runtime.files import remove, storage_error, write_text
from ..runtime.locks import locked_by_all
from ..training.loop import Hooks, TrainLoop, fit_ensemble
from ..training.scan import whole_calls
from .node_checkpoint import binding, save_finished, take_finished
from .nodes.base import Artifact, Failure, Inputs, Node, Result

Computed = tuple[Any, list[LogRecord], int]
"""A node's tree, its log records, and the number of members in its program."""


def run_together(nodes: Sequence[Node], inputs: Mapping[str, Inputs]) -> list[Result]:
    """Return an `Artifact` or a `Failure` for each of some nodes; compute the unfinished ones.

    `inputs` maps a node's name to its inputs. If several nodes share a folder, only one of them is
    computed. An error becomes a `Failure`, which is also written to failed.json.
    """
    say = nodes[0].context.progress.say
    with contextlib.ExitStack() as held:
        # Sorted, because two studies that lock in different orders could wait for each other.
        for folder in sorted({node.folder for node in nodes}):
            held.enter_context(locked_by_all(folder / "lock", say))
        found = [contained(node, take_finished, node) for node in nodes]
        pairs = list(zip(nodes, found, strict=True))
        missing = {node.folder: node for node, result in pairs if result is None}
        computed = dict(zip(missing, _compute(list(missing.values()), inputs), strict=True))
        results = [result or computed[node.folder] for node, result in pairs]
        both = zip(nodes, results, strict=True)
        return [contained(node, with_metrics, node, result) for node, result in both]


def with_metrics(node: Node, result: Result) -> Result:
    """Write the log records of a node's result to its metrics.jsonl; return the result unchanged.

    The earlier contents of the file are replaced.
    """
    if isinstance(result, Artifact):
        with _writer(node) as writer:
            writer.reset("", result.records)
    return result


def contained(node: Node, work: Callable[..., Any], *given: Any) -> Any:
    """Call `work(*given)` for a node; return what it returns, or a `Failure` if it raises an error.

    This way an error in one node does not stop the others. Some errors still stop the study:

    - `StoppedError`: a signal asked to stop.
    - `StorageError`: nothing more can be written to the disk.
    - With several processes every error but `DivergedError`: a process that failed alone must end,
      because the others wait for it.
    """
    try:
        return work(*given)
    except StoppedError:
        raise
    except Exception as error:
        if full := storage_error(error):
            raise full from error
        if jax.process_count() > 1 and not isinstance(error, DivergedError):
            raise
        return _failed(node, error)


def _failed(node: Node, error: Exception) -> Failure:
    """Write a node's error to failed.json, print a warning, and return a `Failure`."""
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


def _compute(nodes: Sequence[Node], inputs: Mapping[str, Inputs]) -> list[Result]:
    """Compute unfinished nodes of a study, train loops as one program; return a result for each."""
    if not nodes:
        return []
    for node in nodes if is_primary() else ():
        remove(node.folder / "failed.json")
    more = f" and {len(nodes) - 1} more together" if len(nodes) > 1 else ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(nodes[0].context.progress.stage(nodes[0].name + more))
        writers = {node.name: stack.enter_context(_writer(node)) for node in nodes}
        started = time.monotonic()
        run = _run_loops if nodes[0].is_loop else _run_each
        computed = run(nodes, inputs, writers)
        elapsed = time.monotonic() - started
        results = [
            done
            if isinstance(done, Failure)
            else contained(node, save_finished, node, inputs[node.name], *done, elapsed)
            for node, done in zip(nodes, computed, strict=True)
        ]
    for node, result in zip(nodes, results, strict=True):
        if isinstance(result, Artifact):  # after all are saved, so that a kill loses no node
            checkpoint.Rolling(node.folder / "steps").clear()
    return results


Writers = Mapping[str, MetricWriter]


def _run_each(
    nodes: Sequence[Node], inputs: Mapping[str, Inputs], writers: Writers
) -> list[Computed | Failure]:
    """Compute nodes without a train loop one by one; return arrays and log records of each."""

    def work(node: Node) -> Computed:
        given = _given(node, inputs)
        return (*node.compute(given, _hooks(node, node.watch(given), writers[node.name])), 1)

    return [contained(node, work, node) for node in nodes]


def _run_loops(
    nodes: Sequence[Node], inputs: Mapping[str, Inputs], writers: Writers
) -> list[Computed | Failure]:
    """Run the train loops of several nodes as one program; return arrays and log records of each.

    If the program does not fit in memory, each half of its loops is tried on its own.
    """
    loops = [contained(node, lambda node=node: node.loop(_given(node, inputs))) for node in nodes]
    results = dict(zip((node.name for node in nodes), loops, strict=True))
    ready = [node for node in nodes if isinstance(results[node.name], TrainLoop)]
    queue = [ready] if ready else []
    while queue:
        group = queue.pop(0)
        given = [results[node.name] for node in group]
        watches = [node.watch(inputs[node.name]) for node in group]
        writing = [writers[node.name] for node in group]
        hooks = [_hooks(*of_node) for of_node in zip(group, watches, writing, strict=True)]
        try:
            outcomes = fit_ensemble(given, hooks)
        except OutOfMemoryError as error:
            if len(group) > 1:
                say, half = group[0].context.progress.say, len(group) // 2
                say(f"{len(group)} together: {error}; trying half of them at a time")
                queue[:0] = [group[:half], group[half:]]
                continue
            outcomes = [error]
        except StoppedError:
            raise
        except Exception as error:
            if jax.process_count() > 1:
                raise
            outcomes = [error] * len(group)
        for node, loop, outcome in zip(group, given, outcomes, strict=True):
            results[node.name] = _outcome(node, loop, outcome, len(group))
    return [results[node.name] for node in nodes]


def _given(node: Node, inputs: Mapping[str, Inputs]) -> Inputs:
    """Return the `Inputs` of a node; raise `CheckpointError` if a needed result was not read.

    This happens to a node that seemed finished when the study was planned, but whose checkpoint is
    damaged.
    """
    given = inputs[node.name]
    for name, needed in node.needs.items():
        if getattr(given, name) is None and name not in node.optional:
            raise CheckpointError(
                f"its {needed.title} was not read; run the same command again to read it"
            )
    return given


def _outcome(node: Node, loop: TrainLoop, outcome: Any, members: int) -> Computed | Failure:
    if isinstance(outcome, Exception):
        return _failed(node, outcome)
    state, records = outcome
    return node.tree_of(loop, state), records, members


def _writer(node: Node) -> MetricWriter:
    folder, sinks = node_folder(node.context.workdir, node.name), node.context.config.loop.sinks
    return MetricWriter(folder, sinks=sinks, run_name=node.name, active=is_primary())


def _hooks(
    node: Node,
    watch: Callable[[TrainState], LogRecord],
    writer: MetricWriter,
    part: str = "",
    watch_every: int = 0,
) -> Hooks:
    """Return the `Hooks` that log and save a node's train loop, or one `part` of several loops."""
    context, loop = node.context, node.context.config.loop
    rolling = checkpoint.Rolling(node.folder / "steps" / part, of=binding(node))
    name = f"{node.name}/{part}" if part else node.name
    progress = context.progress

    def within(inside: str, every: int) -> Hooks:
        inner = f"{part}/{inside}" if part else inside
        return _hooks(node, watch, writer, inner, whole_calls(every, loop.steps_per_call))

    def start(step: int, records: list[LogRecord]) -> None:
        writer.reset(part, records)
        if records:  # without records the loop is new, even if it starts at a step above 0
            progress.say(f"{name}: continues at step {step}")

    def log(record: LogRecord, steps: int) -> None:
        writer.write(part, record)
        progress.update(record, steps)

    def save(state: TrainState, records: list[LogRecord]) -> None:
        rolling.save(int(state.step), state, {"records": records})

    def restore(state: TrainState, step: int) -> tuple[TrainState, list[LogRecord]] | None:
        found = rolling.load(step, state)
        return found and (found[0], found[1]["records"])

    return Hooks(
        start=start,
        log=log,
        save=save,
        saved=rolling.steps,
        restore=restore,
        watch=watch,
        say=lambda text: progress.say(f"{name}: {text}"),
        part=within,
        log_every=loop.log_every,
        save_every=loop.save_every,
        save_seconds=loop.save_seconds,
        save_last=bool(part),
        watch_every=watch_every if part else node.watch_every,
        steps_per_call=loop.steps_per_call,
        devices=context.devices,
        profile=context.profile and str(user_path(context.profile, "--profile") / name),
    )
