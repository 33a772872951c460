"""The first-stage node of training-time defences, and helpers that read the poisoned set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import Model, Split, TrainingDefense, TrainState
from ...metrics.learning import learning_watch
from ...training.loop import TrainLoop
from ...training.poisoned_set import poisoned_split
from ...training.scan import whole_calls
from .base import Inputs, Node, recipe_hash, watched_rates


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FirstStageNode(Node):
    """A node that runs the first stage of a training-time defence on the poisoned training set.

    Defences with the same settings of the first stage share it. `prepared` is the preparation of
    the attack, if it has one.
    """

    victim: Node
    defense: TrainingDefense
    prepared: Node | None = None

    kind, title, shared, is_loop = "first_stage", "first stage", True, True

    @property
    def network(self) -> Model:
        """Return the `Model` that a first stage trains, which may have further layers."""
        return self.defense.first_network(self.context.model)

    @property
    def what(self) -> str:
        """Return `first_stage-<hash of settings>`, the last part of a first-stage node's name."""
        return f"first_stage-{recipe_hash(self.settings)}"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of a training-time defence that determine its first stage."""
        return self.defense.settings

    @property
    def watch_every(self) -> int:
        """Return the number of steps between two measurements of a first stage: one epoch.

        It is rounded to whole calls of the loop.
        """
        epoch = self.defense.epoch(len(self.context.dataset.train.labels))
        return whole_calls(epoch, self.context.config.loop.steps_per_call)

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the train loop of a training-time defence's first stage."""
        data, _ = released_set(self, inputs)
        return self.defense.begin(training_key(self), self.context.model, data)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Return a function that measures how a first stage learns clean and poisoned images."""
        return training_watch(self, inputs)


def training_key(node: Node) -> jax.Array:
    """Return the jax random key that all training-time defences of an attack run share."""
    return stream(jax.random.key(node.run.seed), "training")


def released_set(node: Node, inputs: Inputs) -> tuple[Split, np.ndarray]:
    """Return an attack run's poisoned training set, and a boolean mask [N] of the poisoned rows."""
    prepared, run = getattr(inputs, "prepared", None), node.run
    given = prepared and prepared.tree
    return poisoned_split(run.key, run.attack, node.context.dataset.train, given)


def training_watch(node: Node, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
    """Return a function that measures how a defence's training learns clean and poisoned images.

    It measures ACC and ASR on some test images, and scores of some clean and some poisoned training
    images.
    """

    network, evaluate = node.network, node.evaluator

    def rates(variables: Any, test: Any) -> LogRecord:
        return watched_rates(evaluate(variables, inputs.victim.tree.trigger, test))

    test = node.context.dataset.test
    return learning_watch(network, rates, test, lambda: released_set(node, inputs))
