"""The ledger of a running study: results of its nodes, and their records in the run folder."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..results.artifacts import NodeRecord, node_folder, read_record, write_record
from ..runtime.distributed import any_process, broadcast_from_host0, is_primary
from ..runtime.files import remove, storage_error
from ..runtime.locks import locked_by_all
from ..runtime.stopping import is_stopping, stopped
from .context import StudyContext
from .executor import contained, run_together, with_metrics
from .node_checkpoint import read_finished
from .nodes.base import AnalysisNode, Artifact, Failure, Findings, Inputs, Node, Result


class Ledger:
    """The results of a study's nodes, by name; writes a record of each to the run folder.

    The arrays of a node stay in memory until all nodes that need them, except analyses, have run.
    Analyses load them again from the checkpoint.
    """

    def __init__(self, context: StudyContext, groups: Iterable[Sequence[Node]]):
        self.context = context
        self.results: dict[str, Result] = {}
        self.records: dict[str, NodeRecord] = {}
        begins = [node for group in groups for node in group if not node.analysis]
        self._users = collections.Counter(
            needed.name for node in begins for needed in node.needs.values()
        )

    def run(self, group: Sequence[Node], compute: bool) -> None:
        """Run a group of a study's nodes (one program), and record the result of each node.

        With `compute` false only analyses are computed; other nodes are read from earlier runs.
        Raises `StoppedError` if a signal asked to stop, and `StorageError` if the disk is full.
        """
        if any_process(is_stopping()):
            raise stopped()
        given = {node.name: self.inputs(node) for node in group}
        for node in group:
            failure = given[node.name]
            if isinstance(failure, Failure):
                self._add(node, failure, Inputs())
        inputs = {name: one for name, one in given.items() if isinstance(one, Inputs)}
        ready = [node for node in group if node.name not in self.results]
        analyses = [node for node in ready if isinstance(node, AnalysisNode)]
        for node in analyses:
            self._analyse(node, inputs[node.name])
        if ready and not analyses:
            results = run_together(ready, inputs) if compute else map(self._read, ready)
            for node, result in zip(ready, results, strict=True):
                self._add(node, result, inputs[node.name])
        self._release(group)

    def inputs(self, node: Node) -> Inputs | Failure:
        """Return the results that a node needs, as `Inputs`, or a `Failure` if one is missing.

        An optional input is None if its node failed. If the node that `outcome_of` names failed,
        its own `Failure` is returned.
        """
        found = Inputs()
        for name, needed in node.needs.items():
            result = self.results.get(needed.name)
            if isinstance(result, Failure) and name == node.outcome_of:
                return result
            if isinstance(result, Failure) and name not in node.optional:
                state = "is not finished" if result.unfinished else "failed"
                return Failure(f"its {needed.title} {state}", result.unfinished)
            setattr(found, name, result if isinstance(result, Artifact) else None)
        return found

    def _read(self, node: Node) -> Result:
        """Read the result of a node that an earlier run of the study has left on disk."""
        return contained(node, with_metrics, node, read_finished(node))

    def _add(self, node: Node, result: Result, inputs: Inputs) -> None:
        """Store a node's result, compute its rows and arrays for tables, and write its record.

        If the findings cannot be computed, the result becomes a `Failure`.
        """
        found = Findings()
        if isinstance(result, Artifact):
            made = contained(node, node.findings, inputs, result)
            if isinstance(made, Failure):
                result = made
            else:
                found = made
        self.results[node.name] = result
        status = "ok" if isinstance(result, Artifact) else result.status
        self._record(node, status, found)

    def _record(self, node: Node, status: str, found: Findings) -> None:
        tables, facts = _plain(found.tables), _plain(found.facts)
        record = NodeRecord(node.name, node.digest, status, tables, facts)
        try:
            if is_primary():
                write_record(self.context.workdir, record, found.arrays)
        except OSError as error:
            if full := storage_error(error):
                raise full from error
            record = NodeRecord(node.name, node.digest, f"failed: {error}", {}, {})
            self.context.progress.warn(f"{node.name} failed: {error}")
        self.records[node.name] = record

    def _analyse(self, node: AnalysisNode, inputs: Inputs) -> None:
        """Run an analysis node, unless the run folder has a record of it with the same inputs."""
        workdir = self.context.workdir
        given = [name for name in node.needs if getattr(inputs, name)]
        say = self.context.progress.say
        with locked_by_all(node_folder(workdir, node.name) / "lock", say):
            kept = read_record(workdir, node.name)
            same = kept is not None and (kept.recipe, kept.status) == (node.digest, "ok")
            if kept is not None and same:
                same = kept.facts.get("inputs") == given
            if broadcast_from_host0([same])[0]:
                if kept is not None:
                    self.records[node.name] = kept
                return
            found = contained(node, node.analyse, inputs)
            if isinstance(found, Failure):
                self._record(node, found.status, Findings())
            else:
                facts = {**found.facts, "inputs": given}
                self._record(node, "ok", found._replace(facts=facts))
                remove(node.folder / "failed.json")

    def _release(self, group: Sequence[Node]) -> None:
        """Free the arrays of results that no later node of the study needs.

        Otherwise wide models would fill the device.
        """
        for node in group:
            if not node.analysis:
                self._users.subtract(needed.name for needed in node.needs.values())
        for name, result in self.results.items():
            if isinstance(result, Artifact) and self._users[name] <= 0:
                result.release()


def _plain(value: Any) -> Any:
    """Return nested dicts and lists with NumPy scalars replaced by Python scalars, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
