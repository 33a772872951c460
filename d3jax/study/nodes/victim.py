"""The victim node: trains the backdoored model on the poisoned data of an attack run."""

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
    """A trained model (`variables`), and the `trigger` of the attack that poisoned its data."""

    variables: Variables
    trigger: Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VictimNode(Node):
    """A node that trains the victim, a model on the training set that the attack poisons.

    `seeds` are the seeds of the study that share this model. `prepared` is the preparation of the
    attack, if it has one.
    """

    prepared: Node | None = None
    seeds: tuple[int, ...] = ()

    kind, role = "victim", "victim"
    what: ClassVar[str] = "train"
    label: ClassVar[str] = "none"
    shared = is_loop = True

    @property
    def title(self) -> str:
        """Return a victim node's name in messages: "backdoored model" or "clean model"."""
        return "backdoored model" if self.run.attacked else "clean model"

    @property
    def seed(self) -> int:
        """Return the attack seed: attack runs with the same attack seed share the victim."""
        return self.run.attack_seed

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the recipe of the attack run, which determines the victim."""
        return self.run.recipe

    @property
    def group(self) -> str | None:
        """Return the attack's label, so that the victims of all seeds train as one program.

        Return None if training images are streamed.
        """
        return None if self.context.streamed else self.run.label

    @property
    def rows(self) -> list[Row]:
        """Return the identifying columns of the victim's rows in results.csv, one for each seed."""
        return [identity(self.context, self.run, self.label, seed) for seed in self.seeds]

    def like(self) -> Victim:
        """Return the shapes and dtypes of a `Victim`, to load a checkpoint."""
        key, init = self.run.key, self.run.attack.init
        return jax.eval_shape(lambda: Victim(self.context.model.init(key), init(key)))

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the train loop that trains the victim on the poisoned training set."""
        context, run = self.context, self.run
        prepared = inputs.prepared.tree if self.prepared else None
        given = (context.model, context.dataset, run.attack, context.config.train, prepared)
        return victim_loop(run.key, *given, streamed=context.streamed)

    def tree_of(self, loop: TrainLoop, state: TrainState) -> Victim:
        """Return the trained model and its trigger, from the last state, as a `Victim`."""
        return Victim(state.variables, trigger_of(loop, state))

    def count(self, inputs: Inputs, tree: Victim) -> Counts:
        """Return the `Counts` of the victim on clean and triggered test images."""
        return self.run.evaluate(tree.variables, tree.trigger, self.context.dataset.test)
