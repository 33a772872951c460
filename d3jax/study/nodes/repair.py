"""A post-training repair of the victim with the reserved images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax

from ...config.fields import program
from ...config.loading import to_mapping
from ...config.study import Choice
from ...core.random import stream
from ...core.types import Defense, Repaired, TrainState, Variables
from ...defenses.repair.target import Found, gather
from ...metrics.attack_success import Counts
from ...results.artifacts import Row
from ...training.loop import Hooks, LogRecord, TrainLoop, lines_of
from ..context import reserved_split
from .base import (
    Artifact,
    Inputs,
    Node,
    Tables,
    model_tables,
    recipe_hash,
    reserved_recipe,
    watched_rates,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RepairNode(Node):
    """A repair by `defense`; `search` and `trigger` are the inversions that it needs, if any."""

    kind, title, listed = "repair", "repair", True
    optional, tables_need = (), ("victim", "detected", "inverted")
    victim: Node
    choice: Choice
    defense: Defense
    searched: tuple[Node, ...] = ()

    @property
    def what(self) -> str:
        """The defence's label."""
        return self.choice.label

    @property
    def label(self) -> str:
        """The defence's label."""
        return self.choice.label

    @property
    def recipe(self) -> dict[str, Any]:
        """The defence and what it begins with."""
        settings = to_mapping(self.choice.config)
        start = reserved_recipe(self.context, self.run)
        return {"defense": self.choice.name, "settings": settings, **start}

    @property
    def folder(self) -> Path:
        """In the run folder."""
        name = f"{self.run.label}-{self.label}-seed{self.run.seed}-{recipe_hash(self.recipe)}"
        return self.context.workdir / "checkpoints" / name

    @property
    def needs(self) -> dict[str, Node]:
        """The victim and the inversions of its search: `detected`, then `inverted`."""
        names = ("inverted",) if len(self.searched) == 1 else ("detected", "inverted")
        return {"victim": self.victim, **dict(zip(names, self.searched, strict=False))}

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

    def like(self) -> Variables:
        """Return the shapes of the variables."""
        return jax.eval_shape(self.context.model.init, jax.random.key(0))

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the loop of the repair."""
        return self.defense.loop(*self._given(inputs))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Variables, list[LogRecord]]:
        """Return the repaired model, with what was found out of it before."""
        options = {}
        if found := self.found(inputs):
            hooks.say(found.text)
            options = {"found": found}
        repaired = self.defense.repair(*self._given(inputs), hooks, **options)
        if not isinstance(repaired, Repaired):
            raise TypeError(
                f"{self.label}: repair returned a {type(repaired).__name__}; "
                "want d3jax.Repaired(variables, trace)"
            )
        return repaired.variables, lines_of(repaired.trace)

    def found(self, inputs: Inputs) -> Found | None:
        """Return what the inversions found out of the model; None for a repair without search."""
        if self.defense.search is None:
            return None
        artifacts = [getattr(inputs, name) for name in list(self.needs)[1:]]
        return gather(self.defense.search, *(artifact.tree for artifact in artifacts))

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Measure ACC and ASR."""
        return lambda state: watched_rates(self.count(inputs, state.variables))

    def count(self, inputs: Inputs, tree: Variables) -> Counts:
        """Return its counts under the victim's trigger."""
        return self.run.evaluate(tree, inputs.victim.tree.trigger, self.context.dataset.test)

    def tables(self, inputs: Inputs, artifact: Artifact) -> Tables:
        """Return its rows, with what its search found."""
        more = self._search_columns(inputs)
        return model_tables(self, artifact, inputs.victim.counts, more)

    def _search_columns(self, inputs: Inputs) -> Row:
        found = self.found(inputs)
        if found is None:
            return {}
        searched = [getattr(inputs, name) for name in list(self.needs)[1:]]
        return {
            "target": found.target,
            "chosen": found.how,
            "trigger_success": found.success,
            "anomaly_index": found.detection.anomaly if found.detection else None,
            "search_seconds": sum(artifact.seconds for artifact in searched),
        }

    def _given(self, inputs: Inputs) -> tuple[Any, ...]:
        context, seed = self.context, self.run.seed
        key = stream(jax.random.key(seed), "repair")
        return key, context.model, inputs.victim.tree.variables, reserved_split(context, seed)
