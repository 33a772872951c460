"""A training-time defence: a model trained from the poisoned set, and what it found out about it.

Which images are poisoned is known here for logs and tables, and nowhere that a weight comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ...config.loading import to_mapping
from ...config.study import Choice
from ...core.types import TrainingDefense, TrainState, Variables
from ...metrics.attack_success import Counts
from ...metrics.sample_scores import auroc, precision_recall, ties_of
from ...results.artifacts import Row
from ...training.loop import Hooks, LogRecord, lines_of
from ..attack_run import poison_flags, untrusted_data
from .base import Artifact, Inputs, Node, Tables, model_tables, recipe_hash
from .first_stage import prepared_of, training_key, training_watch

SHARES = (0.01, 0.05, 0.1)
"""Shares of the images with the lowest scores for which precision and recall are given."""

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


class TrainedModel(NamedTuple):
    """The model, and what the defence found out about the training images, arrays [N] by name."""

    variables: Variables
    found: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainingNode(Node):
    """The training by `defense` on the poisoned set, after its first stage."""

    kind, title, listed = "training_time", "training", True
    tables_need = ("victim", "first_stage")
    victim: Node
    first_stage: Node
    choice: Choice
    defense: TrainingDefense
    prepared: Node | None = None

    @property
    def what(self) -> str:
        """The defence's label."""
        return self.choice.label

    @property
    def label(self) -> str:
        """The defence's label."""
        return self.choice.label

    @property
    def recipe(self) -> dict[str, Any]:
        """The defence and what it begins with."""
        settings = {"defense": self.choice.name, "settings": to_mapping(self.choice.config)}
        return settings | {"seed": self.run.seed, "victim": self.run.recipe}

    @property
    def folder(self) -> Path:
        """In the run folder."""
        name = f"{self.run.label}-{self.label}-seed{self.run.seed}-{recipe_hash(self.recipe)}"
        return self.context.workdir / "checkpoints" / name

    @property
    def needs(self) -> dict[str, Node]:
        """The victim, for its trigger; what the attack prepared; the first stage."""
        prepared = {"prepared": self.prepared} if self.prepared else {}
        return {"victim": self.victim, **prepared, "first_stage": self.first_stage}

    def like(self) -> TrainedModel:
        """Return the shapes of model and findings."""
        variables = jax.eval_shape(self.context.model.init, jax.random.key(0))
        return TrainedModel(variables, self.defense.found(len(self.context.dataset.train.labels)))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[TrainedModel, list[LogRecord]]:
        """Return what the defence makes of the poisoned set."""
        data, _ = untrusted_data(self.context, self.run, prepared_of(inputs))
        given = (training_key(self.run), self.context.model, data, inputs.first_stage.tree, hooks)
        trained = self.defense.train(*given)
        return TrainedModel(trained.variables, trained.found), lines_of(trained.trace)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Measure how clean and poisoned images are learned."""
        return training_watch(self.context, self.run, inputs)

    def count(self, inputs: Inputs, tree: TrainedModel) -> Counts:
        """Return its counts under the victim's trigger."""
        trigger = inputs.victim.tree.trigger
        return self.run.evaluate(tree.variables, trigger, self.context.dataset.test)

    def variables(self, tree: TrainedModel) -> Variables:
        """Return the model's variables."""
        return tree.variables

    def tables(self, inputs: Inputs, artifact: Artifact) -> Tables:
        """Return its rows in results.csv, per_class.csv and filters.csv."""
        flags, found = poison_flags(self.context, self.run), artifact.tree.found
        # The first stage is part of the defence's time.
        seconds = artifact.seconds + inputs.first_stage.seconds
        whole = dataclasses.replace(artifact, seconds=seconds)
        tables = model_tables(self, whole, inputs.victim.counts, choice_columns(flags, found))
        where = {"attack": self.run.label, "defense": self.label, "seed": self.run.seed}
        return tables | {"filters": filter_rows(where, flags, found)}

    def arrays(self, inputs: Inputs, artifact: Artifact) -> Mapping[str, np.ndarray]:
        """Return flags, findings and curves, for the first seed."""
        if self.run.seed != self.context.config.seeds[0]:
            return {}
        flags, found = poison_flags(self.context, self.run), artifact.tree.found
        arrays = {"flags": flags} | {name: np.asarray(values) for name, values in found.items()}
        for name, (precision, recall) in curves_of(flags, found).items():
            arrays[f"precision/{name}"] = precision.astype(np.float32)
            arrays[f"recall/{name}"] = recall.astype(np.float32)
        return arrays

    def facts(self, inputs: Inputs, artifact: Artifact) -> Mapping[str, Any]:
        """Return the name of its first stage."""
        return {"first_stage": self.first_stage.name}


def curves_of(flags: np.ndarray, found: Mapping[str, np.ndarray]) -> Curves:
    """Return precision and recall [N] of the lowest k rows of every score that was computed."""
    scored = [name for name, values in found.items() if values.dtype != np.bool_ and np.any(values)]
    return {name: precision_recall(found[name], flags, ties_of(name, found)) for name in scored}


def filter_rows(where: Row, flags: np.ndarray, found: Mapping[str, np.ndarray]) -> list[Row]:
    """Return the rows of filters.csv: how well low scores find the poison, for every score."""
    rows = []
    for name, (precision, recall) in curves_of(flags, found).items():
        rate = auroc(found[name], flags)
        row = where | {"score": name, "auroc": None if np.isnan(rate) else rate}
        for share in SHARES:
            at = max(1, int(share * len(flags))) - 1
            there = flags.any()  # in a clean set there is nothing to find
            row[f"precision_{share:g}"] = float(precision[at]) if there else None
            row[f"recall_{share:g}"] = float(recall[at]) if there else None
        rows.append(row)
    return rows


def choice_columns(flags: np.ndarray, found: Mapping[str, np.ndarray]) -> Row:
    """Return the columns of results.csv on a defence's choice of images.

    How many suspects there are, and which share of them, and of the images that kept their labels,
    is poisoned.
    """
    suspects, labelled = found["suspects"], found["labelled"]
    shares = {"suspects_poisoned": suspects, "labelled_poisoned": labelled}
    return {"suspects": int(suspects.sum())} | {
        name: float(flags[mask].mean()) if mask.any() else None for name, mask in shares.items()
    }
