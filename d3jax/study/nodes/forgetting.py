"""What a linear model says of the forgetting in an evolution run, beside what was measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.features import penultimate
from ...analysis.forgetting import moment, retained, spectrum
from ...core.images import as_float, as_levels
from ...data.drift import compose
from ...evolution.measure import strengths
from ...evolution.updates import update_rates
from ...results.survival import Predicted, forgetting_rows
from ..attack_run import targets_of
from .base import AnalysisNode, Findings, Inputs, Node
from .evolution import EvolutionNode, updates_of
from .victim import Victim

PREDICTED_FROM = 1000
"""Images of each update for its second moment, and test images for the trigger's direction."""

WIDEST = 1024
"""Features up to which second moments are decomposed: for 4096 that would take hours."""

Moments = dict[str, list[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ForgettingNode(AnalysisNode):
    """The prediction for one evolution run whose attack has one target, under both curvatures."""

    kind, title = "forgetting", "prediction of forgetting"
    evolution: EvolutionNode

    @property
    def what(self) -> str:
        """Named by the evolution."""
        return f"forgetting-{self.evolution.label}"

    @property
    def label(self) -> str:
        """The evolution's label."""
        return self.evolution.label

    @property
    def needs(self) -> dict[str, Node]:
        """The evolution and the model before it."""
        return {"victim": self.evolution.victim, "evolution": self.evolution}

    @property
    def recipe(self) -> dict[str, Any]:
        """Nothing besides the inputs."""
        return {}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the rows of forgetting.csv; nothing for nets of more than `WIDEST` features."""
        config, memo = self.evolution.config, self.context.memo
        victim, records = inputs.victim.tree, updates_of(inputs.evolution.records)
        direction = memo(("direction", self.run.label), lambda: self._direction(victim))
        if len(direction) > WIDEST:
            return Findings()
        drifting = (config.drift, config.updates, config.validation, config.label_shift)
        alike = ("moments", self.run.label, repr(drifting))
        moments = memo(alike, lambda: self._moments(victim))
        rates = update_rates(config, self.evolution.steps)
        left = {
            name: retained(direction, seconds, rates, config.momentum, config.weight_decay)
            for name, seconds in moments.items()
        }
        values, shares = spectrum(direction, moments["squared"][0])
        scores = np.array([records[0]["first_score"], *(record["score"] for record in records)])
        found = Predicted(self.run.label, self.label, values, shares, scores, left)
        arrays = {"eigenvalues": values, "shares": shares, "scores": scores}
        arrays |= {f"left/{name}": values for name, values in left.items()}
        return Findings({"forgetting": forgetting_rows([found])}, arrays)

    def _direction(self, victim: Victim) -> np.ndarray:
        """Return the mean [D] by which the trigger moves the backdoored model's features."""
        attack, (images, labels) = self.run.attack, self.context.dataset.test
        wanted = np.asarray(attack.relabel(labels) != labels)
        clean = images[np.flatnonzero(wanted)[:PREDICTED_FROM]]
        stamped = as_levels(attack.stamp(victim.trigger, as_float(clean))).astype(jnp.uint8)
        model = self.context.model
        before, after = (penultimate(model, victim.variables, x) for x in (clean, stamped))
        return (after - before).mean(0, dtype=np.float64)

    def _moments(self, victim: Victim) -> Moments:
        """Return the second moment of every update's drifted images, for both curvatures."""
        (target,) = targets_of(self.run, self.context.dataset.info.num_classes)
        model, found = self.context.model, {"squared": [], "softmax": []}
        for update, rows in enumerate(self.evolution.sets[0], 1):
            drifted = self._drifted(update, rows[:PREDICTED_FROM])
            features = penultimate(model, victim.variables, drifted)
            odds = _target_odds(model, victim, drifted, target)
            found["squared"].append(moment(features))
            found["softmax"].append(moment(features, odds * (1 - odds)))
        return found

    def _drifted(self, update: int, rows: np.ndarray) -> jax.Array:
        config, context = self.evolution.config, self.context
        images = as_float(jnp.asarray(context.fresh.images[rows]))
        keys = jax.random.split(jax.random.key(update), len(images))
        drift = compose(tuple(config.drift), context.dataset.info.shape[2])
        return as_levels(drift(keys, images, strengths(config, update))).astype(jnp.uint8)


def is_predicted(evolution: EvolutionNode) -> bool:
    """Return whether a linear model says anything of an evolution run.

    It does not where updates see the trigger, are defended or carry their momentum, nor where the
    trigger drifts with the image, nor for attacks with several targets or none.
    """
    config, run = evolution.config, evolution.run
    one_target = len(targets_of(run, evolution.context.dataset.info.num_classes)) == 1
    sees_trigger = config.persistent or config.replay or config.trigger_first
    carried = config.optimizer_state == "carried"
    return one_target and not (evolution.defense or sees_trigger or carried)


def _target_odds(model: Any, victim: Victim, images: jax.Array, target: int) -> np.ndarray:
    """Return the probability [N] that the model gives the target."""
    parts = []
    for first in range(0, len(images), 500):
        batch = as_float(images[first : first + 500])
        logits = model.apply(victim.variables, batch, train=False).logits
        parts.append(np.asarray(jax.nn.softmax(logits)[:, target]))
    return np.concatenate(parts)
