"""The forgetting node: a linear model's prediction of how an evolution run forgets a backdoor."""

from __future__ import annotations

import dataclasses

from ...evolution.prediction import predict_forgetting
from ...evolution.survivability import updates_of
from ...results.survival import forgetting_rows
from ..attack_run import targets_of
from ..context import fresh_split
from .base import AnalysisNode, Findings, Inputs
from .evolution import EvolutionNode
from .victim import VictimNode


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ForgettingNode(AnalysisNode):
    """A node that predicts by a linear model how one evolution run forgets the backdoor.

    The prediction is compared with the measured forgetting. The attack has one target. The linear
    model predicts under two curvatures, of the squared loss and of softmax.
    """

    victim: VictimNode
    evolution: EvolutionNode

    kind, title = "forgetting", "prediction of forgetting"

    @property
    def what(self) -> str:
        """Return `forgetting@<evolution's label>`, the last part of a forgetting node's name."""
        return f"forgetting@{self.label}"

    def analyse(self, inputs: Inputs) -> Findings:
        """Predict how a backdoor is forgotten; return rows of forgetting.csv and arrays to plot.

        Return nothing if the model has too many features to decompose their second moments.
        """
        records = updates_of(inputs.evolution.records)
        scores = [records[0]["first_score"], *(record["score"] for record in records)]
        (target,) = targets_of(self.run, self.context.dataset.info.num_classes)
        found = predict_forgetting(
            self.evolution.measure,
            inputs.victim.tree,
            target,
            fresh_split(self.context),
            self.evolution.sets[0],
            scores,
            memo=lambda key, make: self.context.memo((self.victim.digest, key), make),
        )
        if found is None:
            return Findings()
        arrays = {f"left/{name}": values for name, values in found.left.items()}
        arrays |= {name: getattr(found, name) for name in ("eigenvalues", "shares", "scores")}
        where = {"attack": self.run.label, "evolution": self.label}
        rows = [where | row for row in forgetting_rows(found)]
        return Findings({"forgetting": rows}, arrays)


def is_predicted(evolution: EvolutionNode) -> bool:
    """Return whether the linear model of forgetting can predict an evolution run.

    It does not apply in these cases: updates see the trigger, are defended or carry their momentum;
    the trigger drifts with the image; the attack has several targets or none.
    """
    config, run = evolution.chosen.config, evolution.run
    one_target = len(targets_of(run, evolution.context.dataset.info.num_classes)) == 1
    sees_trigger = config.persistent or config.replay or config.trigger_first
    carried = config.optimizer_state == "carried"
    return one_target and not (evolution.defense or sees_trigger or carried)
