"""A training-time defence: a model trained from the poisoned set, and what it found out about it.

Which images are poisoned is known here for logs and tables, and nowhere that a weight comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...core.records import LogRecord
from ...core.types import TrainingDefense, TrainState, Variables
from ...metrics.sample_scores import choice_rates, curves_of, filter_rates
from ...training.loop import Hooks, records_of
from ..attack_run import poison_flags
from .base import Artifact, Findings, Inputs, Node, model_tables
from .first_stage import released_set, training_key, training_watch


class TrainedModel(NamedTuple):
    """The model, and what the defence found out about the training images, arrays [N] by name."""

    variables: Variables
    found: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainingNode(Node):
    """The training by `defense` on the poisoned set, after its first stage."""

    victim: Node
    first_stage: Node
    defense: TrainingDefense
    prepared: Node | None = None

    kind, title, role = "training_time", "training", "defense"
    read_again = ("victim", "first_stage")

    def like(self) -> TrainedModel:
        """Return the shapes of model and findings."""
        found = self.defense.found(len(self.context.dataset.train.labels))
        return TrainedModel._make((super().like(), found))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[TrainedModel, list[LogRecord]]:
        """Return what the defence makes of the poisoned set."""
        data, _ = released_set(self, inputs)
        given = (training_key(self), self.context.model, data, inputs.first_stage.tree, hooks)
        trained = self.defense.train(*given)
        return TrainedModel(trained.variables, trained.found), records_of(trained.trace)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Measure how clean and poisoned images are learned."""
        return training_watch(self, inputs)

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return its rows in three tables; for the first seed flags, findings and curves."""
        flags, found = poison_flags(self.context, self.run), artifact.tree.found
        # The first stage is part of the defence's time.
        seconds = artifact.seconds + inputs.first_stage.seconds
        columns = choice_rates(flags, found) | {"seconds": seconds}
        tables = model_tables(self, artifact, inputs.victim.counts, columns)
        where = {"attack": self.run.label, "defense": self.label, "seed": self.run.seed}
        curves = curves_of(flags, found)
        tables["filters"] = [where | rates for rates in filter_rates(flags, found, curves)]
        arrays = {"flags": flags} | {name: np.asarray(values) for name, values in found.items()}
        for name, (precision, recall) in curves.items():
            arrays |= {f"precision/{name}": precision, f"recall/{name}": recall}
        shown = self.run.seed == self.context.config.seeds[0]
        facts = {"first_stage": self.first_stage.name}
        return Findings(tables, arrays if shown else {}, facts)
