"""The model that everything begins with: trained on poisoned data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ...core.types import TrainState, Variables
from ...metrics.attack_success import Counts
from ...results.artifacts import Row
from ...training.loop import TrainLoop
from ...training.victim import trigger_of, victim_loop
from .base import (
    Artifact,
    Inputs,
    Node,
    Tables,
    cache_folder,
    identity,
    model_tables,
    recipe_hash,
)


class Victim(NamedTuple):
    """A model and the trigger that its attack made."""

    variables: Variables
    trigger: Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VictimNode(Node):
    """The training of a model on the set that the attack poisons; `seeds` share it.

    `prepared` is what the attack computed before, if anything.
    """

    kind, listed = "victim", True
    prepared: Node | None = None
    seeds: tuple[int, ...] = ()

    what, label = "train", "none"

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return "backdoored model" if self.run.attacked else "clean model"

    @property
    def name(self) -> str:
        """Runs with one attack seed share it."""
        return f"{self.run.name}/{self.what}"

    @property
    def recipe(self) -> dict[str, Any]:
        """The attack run's."""
        return self.run.recipe

    @property
    def folder(self) -> Path:
        """In the cache."""
        data, model = self.context.dataset.info.name, self.context.config.model.name
        name = f"{data}-{model}-{self.run.label}-{recipe_hash(self.recipe)}"
        return cache_folder(self.context) / name

    @property
    def needs(self) -> dict[str, Node]:
        """What the attack prepared."""
        return {"prepared": self.prepared} if self.prepared else {}

    @property
    def group(self) -> str | None:
        """The seeds of an attack, unless their batches are brought one by one."""
        return None if self.context.streamed else self.run.label

    is_loop = True

    @property
    def about(self) -> dict[str, Any]:
        """The attack and its settings, by which a later study knows the trigger."""
        return {key: self.run.recipe[key] for key in ("attack", "settings")}

    @property
    def rows(self) -> list[Row]:
        """One row for each seed that shares the model."""
        seeds = self.seeds or (self.run.seed,)
        return [identity(self.context, self.run, self.label, seed) for seed in seeds]

    def like(self) -> Victim:
        """Return the shapes of model and trigger."""
        key, init = self.run.key, self.run.attack.init
        return jax.eval_shape(lambda: Victim(self.context.model.init(key), init(key)))

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the training on the poisoned set."""
        context, run = self.context, self.run
        prepared = inputs.prepared.tree if self.prepared else None
        given = (context.model, context.dataset, run.attack, context.config.train, prepared)
        return victim_loop(run.key, *given, streamed=context.streamed)

    def tree_of(self, loop: TrainLoop, state: TrainState) -> Victim:
        """Return the model and its trigger."""
        return Victim(state.variables, trigger_of(loop, state))

    def count(self, inputs: Inputs, tree: Victim) -> Counts:
        """Return its counts on the test set."""
        return self.run.evaluate(tree.variables, tree.trigger, self.context.dataset.test)

    def variables(self, tree: Victim) -> Variables:
        """Return the model's variables."""
        return tree.variables

    def tables(self, inputs: Inputs, artifact: Artifact) -> Tables:
        """Return its rows in results.csv and per_class.csv."""
        return model_tables(self, artifact)
