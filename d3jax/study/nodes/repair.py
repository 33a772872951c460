"""The repair node: repairs the trained victim with the reserved clean images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax

from ...config.fields import program
from ...core.random import stream
from ...core.records import LogRecord, Row
from ...core.types import Model, Repair, Repaired, TrainState, Variables
from ...defenses.repair.target import Found, gather
from ...metrics.attack_success import triggered_split
from ...training.loop import Hooks, TrainLoop, records_of
from ..context import reserved_settings, reserved_split
from .base import Artifact, Findings, Inputs, Node, model_tables, watched_rates
from .evidence import EvidenceNode
from .first_stage import released_set
from .inversion import InversionNode


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RepairNode(Node):
    """A node that repairs the victim by the method `defense`, with the reserved clean images.

    Some repairs search for a trigger. `detected` is the evidence that flags the target class, if
    the target is not given. `inverted` is the inversion of the target, unless the evidence
    contains it. `prepared` is the preparation of the attack, for repairs that need the training
    set.
    """

    victim: Node
    defense: Repair
    detected: EvidenceNode | None = None
    inverted: InversionNode | None = None
    prepared: Node | None = None

    kind = title = "repair"
    role = "defense"
    read_again = ("victim", "detected", "inverted")

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the study's reserved clean images, as data for the recipe."""
        return {"reserved": reserved_settings(self.context)}

    @property
    def network(self) -> Model:
        """Return the `Model` of a repaired model, whose architecture a repair may change."""
        return self.defense.network(self.context.model)

    @property
    def is_loop(self) -> bool:
        """Return whether a repair is one train loop, and not another computation."""
        return self.defense.loop is not None

    @property
    def group(self) -> Hashable:
        """Return a key that is equal for repairs whose train loops can run as one program.

        Their configs may differ in numbers that the program takes as arrays.
        """
        return (self.chosen.name, program(self.chosen.config)) if self.is_loop else None

    @property
    def watch_every(self) -> int:
        """Return the steps between two measurements of a repair: `loop.watch_every`."""
        return self.context.config.loop.watch_every

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the train loop of a repair of the victim."""
        assert self.defense.loop is not None  # called only if `is_loop`
        return self.defense.loop(*self._given(inputs))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Variables, list[LogRecord]]:
        """Repair the victim; return the repaired model's variables and the log records."""
        needed = {name: self._needed(name, inputs) for name in self.defense.needs}
        repaired = self.defense.repair(*self._given(inputs), hooks, **needed)
        if not isinstance(repaired, Repaired):
            raise TypeError(
                f"{self.label}: repair returned a {type(repaired).__name__}; "
                "want d3jax.Repaired(variables, trace)"
            )
        return repaired.variables, records_of(repaired.trace)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Return a function that measures ACC and ASR of a model during its repair."""

        def rates(state: TrainState) -> LogRecord:
            counts = self.count(inputs, state.variables)
            return watched_rates(counts) if counts else {}

        return rates

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return the repair's rows of results.csv (with its search results) and per_class.csv."""
        columns: Row = {"rule": self.defense.rule or None}
        if self.defense.search:
            found, searched = self._found(inputs), (self.detected, self.inverted)
            artifacts = [
                inputs.detected if node is self.detected else inputs.inverted
                for node in searched
                if node
            ]
            columns |= {
                "target": found.target,
                "chosen": found.how,
                "trigger_success": found.success,
                "anomaly_index": found.verdict.statistic if found.verdict else None,
                "search_seconds": sum(one.seconds for one in artifacts),
            }
        return Findings(model_tables(self, artifact, inputs.victim.counts, columns))

    def _needed(self, name: str, inputs: Inputs) -> Any:
        """Return one extra input that a repair needs: a search result or a data set."""
        if name == "target":
            return self._found(inputs)
        if name == "training_set":
            return released_set(self, inputs)[0]
        test = self.context.dataset.test
        if name == "test_set":
            return test
        return triggered_split(self.run.attack, inputs.victim.tree.trigger, test)

    def _found(self, inputs: Inputs) -> Found:
        """Return the target class and inverted trigger of a repair's search, as a `Found`."""
        verdict = self.detected and self.detected.detector.judge(inputs.detected.tree)
        of_target = inputs.inverted if self.inverted else inputs.detected
        return gather(self.defense.search, verdict, of_target.tree)

    def _given(self, inputs: Inputs) -> tuple[Any, ...]:
        context, seed = self.context, self.run.seed
        key = stream(jax.random.key(seed), "repair")
        return key, context.model, inputs.victim.variables, reserved_split(context, seed)
