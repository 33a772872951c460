"""The evolution node: updates a backdoored or clean model again and again on fresh data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from ...config.loading import to_mapping
from ...core.records import LogRecord
from ...core.types import Repair, Split, TrainState, Variables
from ...evolution.defended import defended_updates
from ...evolution.fresh_sets import divide, evolution_key, steps_of
from ...evolution.measure import Measure, update_watch
from ...evolution.survivability import survival_columns
from ...evolution.updates import evolution_loop
from ...metrics.attack_success import Counts
from ...runtime import checkpoint
from ...training.loop import Hooks, TrainLoop
from ...training.poisoned_set import poisoned_split
from ..context import fresh_split, reserved_settings, reserved_split
from .base import Artifact, Findings, Inputs, Node, model_tables


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvolutionNode(Node):
    """A node that runs one evolution: updates the victim again and again on fresh data.

    If there is a `defense`, it is called after some of the updates. `prepared` is the preparation
    of the attack, for runs that replay the training set. A control (a run of a clean model) saves
    the model of every update in `folder`/updates.
    """

    victim: Node
    defense: Repair | None = None
    prepared: Node | None = None

    kind = title = role = "evolution"
    shared = True
    read_again = ("victim",)

    @property
    def settings(self) -> dict[str, Any]:
        """Return an evolution's fresh images, drift order and called defence, for the recipe."""
        study, config = self.context.config, self.chosen.config
        found = {
            "fresh": [study.fresh, self.context.fresh_hash],
            "measured": study.measured,
            # The order of drifts matters, but the hash of a mapping does not depend on it.
            "drift": list(config.drift.items()),
        }
        for called in study.defenses:
            if called.label == config.defense:
                reserved = reserved_settings(self.context)
                found["called"] = [called.name, to_mapping(called.config), reserved]
        return found

    @property
    def recipe(self) -> dict[str, Any]:
        """Return everything that determines an evolution run, as plain data to be hashed.

        Without a trigger, the settings of poison are fixed: they have no effect.
        """
        recipe = super().recipe
        if not self.run.attacked:
            recipe["choice"]["config"] |= {"persistent": 0.0, "trigger_first": False}
        return recipe

    @property
    def is_loop(self) -> bool:
        """Return whether an evolution is one train loop: no defence is called between updates."""
        return self.defense is None

    @property
    def group(self) -> Hashable:
        """Return a key that is equal for evolution runs that can be computed as one program."""
        return (self.run.label, self.chosen.config.program) if self.is_loop else None

    @property
    def watch_every(self) -> int:
        """Return the number of train steps in one update of an evolution run."""
        return steps_of(self.chosen.config, len(fresh_split(self.context).labels))

    @functools.cached_property
    def sets(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the fresh image rows of each update, to train [T, n] and to validate [T, m]."""
        labels, classes = fresh_split(self.context).labels, self.context.dataset.info.num_classes
        return divide(evolution_key(self.run.seed), labels, self.chosen.config, classes)

    @property
    def measure(self) -> Measure:
        """Return the `Measure` of an evolution's models on test images that drift.

        It uses the first `measured` test images of the study, or all.
        """
        context, config = self.context, self.chosen.config
        count = context.config.measured or len(context.dataset.test.labels)
        test = Split(*(part[:count] for part in context.dataset.test))
        batch = context.config.loop.eval_batch
        return Measure(context.model, self.run.attack, context.dataset.info, config, test, batch)

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the train loop that runs all updates of an evolution."""
        context, run, victim = self.context, self.run, inputs.victim.tree
        config, replayed = self.chosen.config, None
        if config.replay:
            prepared = getattr(inputs, "prepared", None)
            given = (run.attack, context.dataset.train, prepared and prepared.tree)
            replayed, _ = poisoned_split(run.key, *given)
        data = (
            replayed,
            fresh_split(context),
            run.attack,
            victim.trigger,
            config,
            context.dataset.info,
        )
        return evolution_loop(evolution_key(run.seed), context.model, victim.variables, *data)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Return a function that measures an evolution's model after each update.

        For a control run, which has no trigger, it also saves the model.
        """
        kept = [
            Split(*(np.asarray(part)[rows] for part in fresh_split(self.context)))
            for rows in self.sets[1]
        ]
        watch = update_watch(self.measure, inputs.victim.tree, kept, self.watch_every)

        def watch_and_keep(state: TrainState) -> LogRecord:
            record = watch(state)
            if "watch_asr" not in record:
                path = self.folder / "updates" / str(record["update"])
                checkpoint.save(path, state.variables)
            return record

        return watch_and_keep

    def count(self, inputs: Inputs, tree: Variables) -> Counts:
        """Return the `Counts` of an evolution's last model on all test images, drifted as then."""
        whole = dataclasses.replace(self.measure, test=self.context.dataset.test)
        return whole(tree, inputs.victim.tree.trigger, self.chosen.config.updates)[0]

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Variables, list[LogRecord]]:
        """Run an evolution with a defence between updates; return the model and log records."""
        assert self.defense is not None  # without one it is a loop
        images = len(reserved_split(self.context, self.run.seed).labels)
        watch, trigger = self.watch(inputs), inputs.victim.tree.trigger
        calls = (self.defense, evolution_key(self.run.seed), images, self.sets[0].shape[1])
        return defended_updates(self.loop(inputs), self.measure, trigger, *calls, watch, hooks)

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return an evolution's rows of results.csv (with survivability) and per_class.csv."""
        columns = survival_columns(artifact.records, inputs.victim.counts.asr)
        return Findings(model_tables(self, artifact, None, columns))
