"""The inverted-trigger node: measures a detector's inverted trigger on a model, repaired or not.

Its effect can be measured even if nobody knows the real trigger.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from ...core.images import as_levels
from ...metrics.attack_success import target_share
from .base import AnalysisNode, Findings, Inputs, Node
from .evidence import EvidenceNode
from .model_detection import to_try


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InvertedTriggerNode(AnalysisNode):
    """A node that measures the ASR of a detection's inverted trigger on one model of a study.

    `choice` is the detection that found the trigger. `model` is the victim or a defended model of
    the same attack run.
    """

    evidence: EvidenceNode
    model: Node

    kind, title = "inverted_trigger", "inverted trigger"

    @property
    def label(self) -> str:
        """Return the label of the model on which the inverted trigger is measured."""
        return self.model.label

    @property
    def what(self) -> str:
        """Return `inverted@<detection>@<model>`, the end of an inverted-trigger node's name."""
        return f"inverted@{self.chosen.label}@{self.label}"

    def analyse(self, inputs: Inputs) -> Findings:
        """Measure an inverted trigger's ASR on one model; return the row of triggers.csv.

        The trigger is that of the flagged class, or of the most suspicious class if none is
        flagged. `turned` is its ASR: the share of test images of other classes that the model
        classifies as that class when they carry the trigger.
        """
        context, tree, detector = self.context, inputs.evidence.tree, self.evidence.detector
        verdict, (label, stamp) = detector.judge(tree), to_try(detector, tree)
        given = (self.model.network, inputs.model.variables, context.dataset.test, label)
        row = {
            "attack": self.run.label,
            "seed": self.run.seed,
            "detection": self.chosen.label,
            "class": context.dataset.info.classes[label],
            "flagged": bool(verdict.flagged[label]),
            "score": float(verdict.scores[label]),
            "defense": self.label,
            "turned": target_share(*given, lambda x: as_levels(stamp(x)).astype(jnp.uint8)),
            "acc": inputs.model.counts.acc,
        }
        row |= {column: values[label].item() for column, values in verdict.columns.items()}
        return Findings({"triggers": [row]})
