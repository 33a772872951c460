"""The updates node: the rows of evolution.csv, one for each update of an evolution run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ...core.records import LogRecord, Row
from ...evolution.survivability import updates_of
from ...results.tables import number_or_none
from ...runtime import checkpoint
from .base import AnalysisNode, Artifact, Findings, Inputs
from .evolution import EvolutionNode
from .victim import VictimNode

COPIED = ("valid_acc", "trained_acc", "trained_asr", "moved", "lr_sum", "score")
RATES = ("acc", "asr", "ra")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class UpdatesNode(AnalysisNode):
    """A node that makes the rows of evolution.csv for one evolution run.

    `control` is the same evolution of a clean model. The attack's trigger on its models shows how
    often the target class is predicted without a backdoor.
    """

    victim: VictimNode
    evolution: EvolutionNode
    control: EvolutionNode | None = None

    kind, title, optional = "updates", "table of updates", ("control",)

    @property
    def what(self) -> str:
        """Return `updates@<label of the evolution>`, the last part of an updates node's name."""
        return f"updates@{self.label}"

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the rows of evolution.csv of one run: before the first update, then after each."""
        control = self.control if getattr(inputs, "control", None) else None
        rates = self._control_rates(control, inputs) if control else {}
        rows = self._rows(inputs.victim, updates_of(inputs.evolution.records), rates)
        return Findings({"evolution": rows})

    def _rows(
        self, victim: Artifact, updates: list[LogRecord], control: dict[int, float]
    ) -> list[Row]:
        where = {"attack": self.run.label, "evolution": self.label, "seed": self.run.seed}
        first = updates[0] if updates else {}
        empty = dict.fromkeys(("stale_acc", "control", *COPIED, "stale_asr", "stale_score"))
        before = {name: number_or_none(getattr(victim.counts, name)) for name in RATES}
        rows = [where | {"update": 0} | before | empty | {"score": first.get("first_score")}]
        stale = {name: first.get(f"first_{name}") for name in ("acc", "asr", "score")}
        for record in updates:
            update = int(record["update"])
            measured = {name: record.get(f"watch_{name}") for name in RATES}
            copied = {name: record.get(name) for name in COPIED}
            old = {f"stale_{name}": value for name, value in stale.items()}
            control_rate = {"control": control.get(update)}
            rows.append(where | {"update": update} | measured | old | control_rate | copied)
            stale = {name: record.get(f"next_{name}") for name in ("acc", "asr", "score")}
        return rows

    def _control_rates(self, control: EvolutionNode, inputs: Inputs) -> dict[int, float]:
        """Return {update: ASR of the attack's trigger on the clean control run's model}.

        Updates whose model the control did not save are missing.
        """
        like = jax.eval_shape(self.context.model.init, jax.random.key(0))
        trigger, rates = inputs.victim.tree.trigger, {}
        for update in range(1, self.chosen.config.updates + 1):
            path = control.folder / "updates" / str(update)
            if checkpoint.exists(path):
                variables: Any = checkpoint.load(path, like)[0]
                rates[update] = self.evolution.measure.asr(variables, trigger, update)
        return rates
