"""An evolution run at every update, for evolution.csv, with the control's target rate beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ...evolution.measure import drifted_asr, strengths
from ...evolution.updates import update_rates
from ...results.artifacts import Row
from ...runtime import checkpoint
from ...training.loop import LogRecord
from .base import AnalysisNode, Artifact, Findings, Inputs, Node
from .evolution import EvolutionNode, measured_images, updates_of

COPIED = ("valid_acc", "trained_acc", "trained_asr", "moved", "lr_sum", "score")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class UpdatesNode(AnalysisNode):
    """The rows of evolution.csv for one evolution run.

    `control` is the run of `clean` that evolves alike: on its models, the attack's trigger shows
    how often the target is said without a backdoor.
    """

    kind, title, optional = "updates", "table of updates", ("control",)
    evolution: EvolutionNode
    control: EvolutionNode | None = None

    @property
    def what(self) -> str:
        """Named by the evolution."""
        return f"updates-{self.evolution.label}"

    @property
    def label(self) -> str:
        """The evolution's label."""
        return self.evolution.label

    @property
    def needs(self) -> dict[str, Node]:
        """The evolution, the model before it, and the control."""
        control = {"control": self.control} if self.control else {}
        return {"victim": self.evolution.victim, "evolution": self.evolution, **control}

    @property
    def recipe(self) -> dict[str, Any]:
        """Nothing besides the inputs."""
        return {}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return a row for every update and one for the model before the first."""
        control = self._control_rates(inputs) if getattr(inputs, "control", None) else {}
        rows = self._rows(inputs.victim, updates_of(inputs.evolution.records), control)
        config = self.evolution.config
        others = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if field.name != "strategy"
        }
        facts = {
            "group": repr(others),
            "constant": config.strategy.name == "constant",
            "scaled": config.strategy.mean is not None,
        }
        rates = np.asarray(update_rates(config, self.evolution.steps))
        return Findings({"evolution": rows}, {"rates": rates}, facts)

    def _rows(
        self, victim: Artifact, updates: list[LogRecord], control: dict[int, float]
    ) -> list[Row]:
        run, counts = self.run, victim.counts
        where = {"attack": run.label, "evolution": self.label, "seed": run.seed}
        first = updates[0] if updates else {}
        start = {"acc": counts.acc, "asr": counts.asr, "ra": counts.ra}
        before = {name: None if np.isnan(value) else value for name, value in start.items()}
        empty = dict.fromkeys(("stale_acc", "control", *COPIED, "stale_asr", "stale_score"))
        rows = [where | {"update": 0} | before | empty | {"score": first.get("first_score")}]
        stale = {name: first.get(f"first_{name}") for name in ("acc", "asr", "score")}
        for record in updates:
            number = int(record["update"])
            row = {"update": number} | {
                name: record.get(f"watch_{name}") for name in ("acc", "asr", "ra")
            }
            row |= {"control": control.get(number)}
            row |= {name: record.get(name) for name in COPIED}
            row |= {f"stale_{name}": value for name, value in stale.items()}
            rows.append(where | row)
            stale = {name: record.get(f"next_{name}") for name in ("acc", "asr", "score")}
        return rows

    def _control_rates(self, inputs: Inputs) -> dict[int, float]:
        """Return how often the control says the attacker's class, by update, where it kept one."""
        context, config = self.context, self.evolution.config
        options = (context.dataset.info, config, context.config.loop.eval_batch)
        asr = drifted_asr(context.model, self.run.attack, *options)
        like = jax.eval_shape(context.model.init, jax.random.key(0))
        trigger, rates = inputs.victim.tree.trigger, {}
        for update in range(1, config.updates + 1):
            path = self._model_of(update)
            if checkpoint.exists(path):
                variables, _ = checkpoint.load(path, like)
                test = measured_images(context, config, update)
                rates[update] = asr(variables, trigger, test, strengths(config, update))
        return rates

    def _model_of(self, update: int) -> Path:
        return self.control.folder / "updates" / str(update)
