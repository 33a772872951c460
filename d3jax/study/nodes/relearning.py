"""The relearning node: measures how much of its backdoor a repaired model learns again."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax

from ...analysis.relearning import relearn
from ...config.loading import to_mapping
from ...core.random import stream
from ...metrics.attack_success import triggered_split
from ..attack_run import evaluator
from .base import AnalysisNode, Findings, Inputs, Node


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RelearningNode(AnalysisNode):
    """A node that fine-tunes one model of an attack run on a few triggered images.

    `choice` is the entry of `evaluations`. `model` is the victim or a repaired model. The victim
    holds the trigger.
    """

    victim: Node
    model: Node

    kind = title = "relearning"

    @property
    def label(self) -> str:
        """Return the label of the model that relearns."""
        return self.model.label

    @property
    def what(self) -> str:
        """Return `<evaluation>@<model>`, the end of a relearning node's name."""
        return f"{self.chosen.label}@{self.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the evaluation, as data for the recipe."""
        return {"evaluation": to_mapping(self.chosen.config)}

    def analyse(self, inputs: Inputs) -> Findings:
        """Let a model relearn its backdoor; return the row of relearned.csv."""
        context, run, network = self.context, self.run, self.model.network
        trigger, before = inputs.victim.tree.trigger, inputs.model.counts
        key, began = stream(jax.random.key(run.seed), "relearn"), time.monotonic()
        found = relearn(
            key, network, inputs.model.variables, context.dataset.train, run.attack,
            functools.partial(triggered_split, run.attack, trigger),
            self.chosen.config, context.dataset.info,
        )  # fmt: skip
        evaluate = run.evaluate
        if network is not context.model:
            evaluate = evaluator(context, run.attack, network)
        after = evaluate(found.variables, trigger, context.dataset.test)
        row = {
            "dataset": context.dataset.info.name,
            "model": context.config.model.name,
            "attack": run.label,
            "poison_rate": run.poison_rate,
            "seed": run.seed,
            "evaluation": self.chosen.label,
            "defense": self.label,
            "acc_before": before.acc,
            "asr_before": before.asr,
            "acc": after.acc,
            "asr": after.asr,
            "ra": after.ra,
            "clean": found.clean,
            "poisoned": found.poisoned,
            "seconds": time.monotonic() - began,
        }
        return Findings({"relearned": [row]})
