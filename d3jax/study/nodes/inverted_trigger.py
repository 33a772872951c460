"""What an inverted trigger does to the models of a run, before and after repairs.

It can be measured where nobody knows the real trigger.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...config.study import Choice
from ...core.images import as_float
from ...core.types import Variables
from ...inversion import Trigger, detect
from ...metrics.attack_success import predict
from ..context import StudyContext
from .base import AnalysisNode, Findings, Inputs, Node
from .model_detection import chosen, stamped, trigger_at

BATCH = 500


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InvertedTriggerNode(AnalysisNode):
    """The trigger that a detection found, on one `model` of its run."""

    kind, title = "inverted_trigger", "inverted trigger"
    inversion: Node
    model: Node
    choice: Choice

    @property
    def what(self) -> str:
        """Named by detection and model."""
        return f"inverted-{self.choice.label}-{self.model.label}"

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def needs(self) -> dict[str, Node]:
        """The inversion and the model."""
        return {"inversion": self.inversion, "model": self.model}

    @property
    def recipe(self) -> dict[str, Any]:
        """Nothing besides the inputs."""
        return {}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the row of triggers.csv.

        `turned` is the share of the test images of other classes that the trigger of the flagged
        class, or the smallest where none is flagged, makes the model take for that class.
        """
        tree, found = inputs.inversion.tree, detect(inputs.inversion.tree.norms)
        at = chosen(found)
        label, variables = int(tree.labels[at]), self.model.variables(inputs.model.tree)
        row = {
            "attack": self.run.label,
            "seed": self.run.seed,
            "detection": self.choice.label,
            "class": self.context.dataset.info.classes[label],
            "flagged": bool(found.flagged[at]),
            "index": float(found.index[at]),
            "norm": float(found.norms[at]),
            "defense": self.label,
            "turned": turned(self.context, variables, trigger_at(tree, at), label),
            "acc": inputs.model.counts.acc,
        }
        return Findings({"triggers": [row]})


def turned(context: StudyContext, variables: Variables, trigger: Trigger, label: int) -> float:
    """Return the share of the test images of other classes taken for `label` when stamped."""
    images, labels = context.dataset.test
    rows = np.flatnonzero(np.asarray(labels) != label)
    hits = 0
    for batch in np.split(rows, range(BATCH, len(rows), BATCH)):
        triggered = stamped(trigger, as_float(jnp.asarray(images[batch])))
        hits += int((predict(context.model, variables, triggered) == label).sum())
    return hits / len(rows)
