"""A post-training repair of the victim with the reserved images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax

from ...config.fields import program
from ...config.loading import to_mapping
from ...core.random import stream
from ...core.records import LogRecord, Row
from ...core.types import Defense, Repaired, TrainState, Variables
from ...defenses.repair.target import Found, gather
from ...training.loop import Hooks, TrainLoop, records_of
from ..context import reserved_split
from .base import Artifact, Findings, Inputs, Node, model_tables, watched_rates


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RepairNode(Node):
    """A repair by `defense`.

    `detected` and `inverted` are the inversions of its search for a trigger, if it has one: the
    detection where the target is not given, and that of the target where it is another.
    """

    victim: Node
    defense: Defense
    detected: Node | None = None
    inverted: Node | None = None

    kind = title = "repair"
    role = "defense"
    read_again = ("victim", "detected", "inverted")

    @property
    def settings(self) -> dict[str, Any]:
        """The reserved images."""
        return {"reserved": to_mapping(self.context.config.reserved)}

    @property
    def is_loop(self) -> bool:
        """Whether the repair is one loop."""
        return self.defense.loop is not None

    @property
    def group(self) -> Hashable:
        """Repairs whose configs differ in numbers that programs take as arrays."""
        return (self.choice.name, program(self.choice.config)) if self.is_loop else None

    @property
    def watch_every(self) -> int:
        """As the study wants it."""
        return self.context.config.loop.watch_every

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the loop of the repair."""
        return self.defense.loop(*self._given(inputs))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Variables, list[LogRecord]]:
        """Return the repaired model, with what was found out of it before."""
        found = self._found(inputs)
        if found:
            hooks.say(found.text)
        options = {"found": found} if found else {}
        repaired = self.defense.repair(*self._given(inputs), hooks, **options)
        if not isinstance(repaired, Repaired):
            raise TypeError(
                f"{self.label}: repair returned a {type(repaired).__name__}; "
                "want d3jax.Repaired(variables, trace)"
            )
        return repaired.variables, records_of(repaired.trace)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Measure ACC and ASR."""
        return lambda state: watched_rates(self.count(inputs, state.variables))

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return its rows, with what its search found."""
        found, columns = self._found(inputs), {}
        if found:
            columns: Row = {
                "target": found.target,
                "chosen": found.how,
                "trigger_success": found.success,
                "anomaly_index": found.detection.anomaly if found.detection else None,
                "search_seconds": sum(one.seconds for one in self._searched(inputs)),
            }
        return Findings(model_tables(self, artifact, inputs.victim.counts, columns))

    def _found(self, inputs: Inputs) -> Found | None:
        """Return what the inversions found out of the model; None for a repair without search."""
        trees = [artifact.tree for artifact in self._searched(inputs)]
        return gather(self.defense.search, *trees) if self.defense.search else None

    def _searched(self, inputs: Inputs) -> list[Artifact]:
        return [getattr(inputs, name) for name in self.needs if name != "victim"]

    def _given(self, inputs: Inputs) -> tuple[Any, ...]:
        context, seed = self.context, self.run.seed
        key = stream(jax.random.key(seed), "repair")
        return key, context.model, inputs.victim.variables, reserved_split(context, seed)
