"""Losses on the lines from the backdoored model to its repaired ones, and in their plane."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from ...analysis.landscape_survey import survey
from ...core.records import Row
from ..context import reserved_split
from .base import AnalysisNode, Findings, Inputs, Node


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LossLandscapeNode(AnalysisNode):
    """The lines from the victim to all its repaired models, and the plane of the first two."""

    victim: Node
    repairs: tuple[Node, ...]

    kind, title = "loss_landscape", "loss landscape"
    what: ClassVar[str] = "loss_landscape@repairs"

    @property
    def needs(self) -> dict[str, Node]:
        """The victim and its repairs, by their labels."""
        return {"victim": self.victim} | {f"to {node.label}": node for node in self.repairs}

    @property
    def optional(self) -> tuple[str, ...]:
        """Every repair: those that failed have no line."""
        return tuple(self.needs)[1:]

    @property
    def settings(self) -> dict[str, Any]:
        """How many points."""
        return {"points": self.context.config.paths}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the rows of paths.csv and changes.csv, and the arrays of the page."""
        context, run = self.context, self.run
        artifacts = {node.label: getattr(inputs, f"to {node.label}") for node in self.repairs}
        models = {label: one.variables for label, one in artifacts.items() if one}
        if not models:
            return Findings()
        given = (context.dataset.test, reserved_split(context, run.seed), context.config.paths)
        found = survey(context.model, run.attack, inputs.victim.tree, models, *given)
        where = {"attack": run.label, "seed": run.seed}
        paths = [where | row for row in found.path_rows()]
        changes: list[Row] = [where | row for row in found.change_rows()]
        facts = {"defenses": list(models), "tensors": found.tensors}
        if "plane/xs" in found.arrays:
            facts["plane"] = ["backdoored", *list(models)[:2]]
        arrays = {name: np.asarray(values) for name, values in found.arrays.items()}
        return Findings({"paths": paths, "changes": changes}, arrays, facts)
