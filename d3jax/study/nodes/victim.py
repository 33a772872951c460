"""The model that everything begins with: trained on poisoned data."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from ...core.records import Row
from ...core.types import TrainState, Variables
from ...metrics.attack_success import Counts
from ...training.loop import TrainLoop
from ...training.victim import trigger_of, victim_loop
from .base import Inputs, Node, identity


class Victim(NamedTuple):
    """A model and the trigger that its attack made."""

    variables: Variables
    trigger: Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VictimNode(Node):
    """The training of a model on the set that the attack poisons; `seeds` share it.

    `prepared` is what the attack computed before, if anything.
    """

    prepared: Node | None = None
    seeds: tuple[int, ...] = ()

    kind, role = "victim", "victim"
    what: ClassVar[str] = "train"
    label: ClassVar[str] = "none"
    shared = is_loop = True

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return "backdoored model" if self.run.attacked else "clean model"

    @property
    def seed(self) -> int:
        """Runs with one attack seed share it."""
        return self.run.attack_seed

    @property
    def recipe(self) -> dict[str, Any]:
        """The attack run's."""
        return self.run.recipe

    @property
    def group(self) -> str | None:
        """The seeds of an attack, unless their batches are brought one by one."""
        return None if self.context.streamed else self.run.label

    @property
    def rows(self) -> list[Row]:
        """One row for each seed that shares the model."""
        return [identity(self.context, self.run, self.label, seed) for seed in self.seeds]

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
