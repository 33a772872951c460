"""What an inverted trigger does to the models of a run, before and after repairs.

It can be measured where nobody knows the real trigger.
"""

from __future__ import annotations

import dataclasses

from ...inversion import detect, stamp_levels, trigger_at, trigger_to_try
from ...metrics.attack_success import target_share
from .base import AnalysisNode, Findings, Inputs, Node
from .inversion import InversionNode


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InvertedTriggerNode(AnalysisNode):
    """The trigger that the detection `choice` found, on one `model` of its run."""

    inversion: InversionNode
    model: Node

    kind, title = "inverted_trigger", "inverted trigger"

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def what(self) -> str:
        """Named by detection and model."""
        return f"inverted@{self.choice.label}@{self.label}"

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the row of triggers.csv.

        `turned` is the share of the test images of other classes that the trigger of the flagged
        class, or the smallest where none is flagged, makes the model take for that class.
        """
        context, tree = self.context, inputs.inversion.tree
        found = detect(tree.norms)
        at = trigger_to_try(found)
        label, trigger = int(tree.labels[at]), trigger_at(tree, at)
        given = (context.model, inputs.model.variables, context.dataset.test, label)
        row = {
            "attack": self.run.label,
            "seed": self.run.seed,
            "detection": self.choice.label,
            "class": context.dataset.info.classes[label],
            "flagged": bool(found.flagged[at]),
            "index": float(found.index[at]),
            "norm": float(found.norms[at]),
            "defense": self.label,
            "turned": target_share(*given, lambda images: stamp_levels(trigger, images)),
            "acc": inputs.model.counts.acc,
        }
        return Findings({"triggers": [row]})
