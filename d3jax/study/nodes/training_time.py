"""The training-time node: a defence that trains a model from scratch on the poisoned set.

The node reads the poison flags for its logs and tables only. No weight depends on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...core.records import LogRecord
from ...core.types import Model, Split, TrainingDefense, TrainState, Variables
from ...metrics.attack_success import triggered_split
from ...metrics.sample_scores import choice_rates, curves_of, filter_rates
from ...training.loop import Hooks, records_of
from ..attack_run import poison_flags
from ..context import reserved_settings, reserved_split
from .base import Artifact, Findings, Inputs, Node, model_tables
from .first_stage import released_set, training_key, training_watch


class TrainedModel(NamedTuple):
    """The result of a training-time defence: `variables`, and arrays `found` on training images.

    `found` holds arrays [N] by name: scores or choices for each training image.
    """

    variables: Variables
    found: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainingNode(Node):
    """A node that trains a model on poisoned data by a training-time defence, after a first stage.

    `prepared` is the preparation of the attack, if it has one.
    """

    victim: Node
    first_stage: Node
    defense: TrainingDefense
    prepared: Node | None = None

    kind, title, role = "training_time", "training", "defense"
    read_again = ("victim", "first_stage")

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the reserved clean images, if the defence needs them."""
        if "reserved" not in self.defense.needs:
            return super().settings
        return super().settings | {"reserved": reserved_settings(self.context)}

    @property
    def network(self) -> Model:
        """Return the `Model` of a trained model, which the defence may have changed."""
        return self.defense.network(self.context.model)

    def like(self) -> TrainedModel:
        """Return the shapes and dtypes of a `TrainedModel`, to load a checkpoint."""
        found = self.defense.found(len(self.context.dataset.train.labels))
        return TrainedModel._make((super().like(), found))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[TrainedModel, list[LogRecord]]:
        """Train a model on the poisoned set by a defence; return it and the log records."""
        data, _ = released_set(self, inputs)
        given = (training_key(self), self.context.model, data, inputs.first_stage.tree, hooks)
        needed = {name: self._needed(name, inputs) for name in self.defense.needs}
        trained = self.defense.train(*given, **needed)
        return TrainedModel(trained.variables, trained.found), records_of(trained.trace)

    def _needed(self, name: str, inputs: Inputs) -> Split:
        """Return one extra set of images that a training-time defence needs."""
        if name == "reserved":
            return reserved_split(self.context, self.run.seed)
        test = self.context.dataset.test
        if name == "test_set":
            return test
        return triggered_split(self.run.attack, inputs.victim.tree.trigger, test)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Return a function that measures how a defence learns clean and poisoned images."""
        return training_watch(self, inputs)

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return a training-time defence's rows of results.csv, per_class.csv and filters.csv.

        For the first seed, also return poison flags, findings, and precision and recall curves.
        """
        flags, found = poison_flags(self.context, self.run), artifact.tree.found
        # The first stage counts as part of the defence's time.
        seconds = artifact.seconds + inputs.first_stage.seconds
        columns = choice_rates(flags, found) | {"seconds": seconds}
        columns["rule"] = self.defense.rule or None
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
