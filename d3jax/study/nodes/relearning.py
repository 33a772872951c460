"""The relearning node: measures how much of its backdoor a repaired model learns again."""

from __future__ import annotations

import functools
import time

import jax

from ...analysis.relearning import relearn
from ...core.random import stream
from ...metrics.attack_success import triggered_split
from ..attack_run import evaluator
from .base import Findings, Inputs
from .evaluation import EvaluationNode


class RelearningNode(EvaluationNode):
    """A node that fine-tunes one model of an attack run on a few triggered images."""

    kind = title = "relearning"

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
        row = self.where | {
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
