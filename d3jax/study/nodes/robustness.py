"""The robustness node: measures the ASR of a model when the trigger changes at test time."""

from __future__ import annotations

from ...analysis.robustness import robustness
from ...results.tables import number_or_none
from .base import Findings, Inputs
from .evaluation import EvaluationNode


class RobustnessNode(EvaluationNode):
    """A node that measures one model's ASR with moved, resized, weaker and stronger triggers."""

    kind = title = "robustness"

    def analyse(self, inputs: Inputs) -> Findings:
        """Measure a model under every change of the trigger; return the rows of robustness.csv.

        The rows of no change have the ASR of results.csv.
        """
        context = self.context
        found = robustness(
            self.model.network, inputs.model.variables, self.run.attack, inputs.victim.tree.trigger,
            context.dataset.test, self.chosen.config, inputs.model.counts.asr,
            context.config.loop.eval_batch,
        )  # fmt: skip
        rows = [
            self.where
            | {
                "change": one.change,
                "amount": one.amount,
                "asr": number_or_none(one.asr),
                "n_triggered": one.images,
            }
            for one in found
        ]
        return Findings({"robustness": rows})
