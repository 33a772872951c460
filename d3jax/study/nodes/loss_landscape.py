"""The loss-landscape node: losses on lines between the backdoored and the repaired models."""

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
    """A node that measures losses on lines from the victim to its repairs, and in a plane.

    There is a line for each repaired model. The plane contains the victim and the first two.
    """

    victim: Node
    repairs: tuple[Node, ...]

    kind, title = "loss_landscape", "loss landscape"
    what: ClassVar[str] = "loss_landscape@repairs"

    @property
    def needs(self) -> dict[str, Node]:
        """Return the nodes of a loss landscape: "victim", and each repair as "to <label>"."""
        return {"victim": self.victim} | {f"to {node.label}": node for node in self.repairs}

    @property
    def optional(self) -> tuple[str, ...]:
        """Return the names of inputs that may be missing: a failed repair only lacks a line."""
        return tuple(self.needs)[1:]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the number of points on a line of the loss landscape, for the recipe."""
        return {"points": self.context.config.paths}

    def analyse(self, inputs: Inputs) -> Findings:
        """Measure a loss landscape; return rows of paths.csv and changes.csv, and arrays."""
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
