"""The base class of evaluation nodes, which measure each model of an attack run once more."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...config.loading import to_mapping
from ...core.records import Row
from .base import AnalysisNode, Node, identity


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationNode(AnalysisNode):
    """A node that measures one model of an attack run by an entry of `evaluations`.

    `choice` is the entry. `model` is the victim or a defended model. The victim holds the trigger.
    """

    victim: Node
    model: Node

    @property
    def label(self) -> str:
        """Return the label of the model that is measured."""
        return self.model.label

    @property
    def what(self) -> str:
        """Return `<evaluation>@<model>`, the end of an evaluation node's name."""
        return f"{self.chosen.label}@{self.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the evaluation, as data for the recipe."""
        return {"evaluation": to_mapping(self.chosen.config)}

    @property
    def where(self) -> Row:
        """Return the columns that identify the rows of an evaluation node."""
        row = identity(self.context, self.run, self.label)
        return {
            "dataset": row["dataset"],
            "model": row["model"],
            "attack": row["attack"],
            "poison_rate": row["poison_rate"],
            "seed": row["seed"],
            "evaluation": self.chosen.label,
            "defense": self.label,
        }
