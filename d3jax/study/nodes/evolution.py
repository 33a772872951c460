"""The evolution node: a backdoored or clean model that is updated repeatedly on fresh data."""

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
from ..context import fresh_split, reserved_split
from .base import Artifact, Findings, Inputs, Node, model_tables


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvolutionNode(Node):
    """An evolution run: all updates of the victim on fresh data.

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
        """Return the fresh images, the order of the drifts, and the defence that is called."""
        study, config = self.context.config, self.chosen.config
        found = {
            "fresh": [study.fresh, self.context.fresh_hash],
            "measured": study.measured,
            # The order of drifts matters, but the hash of a mapping does not depend on it.
            "drift": list(config.drift.items()),
        }
        for called in study.defenses:
            if called.label == config.defense:
                reserved = to_mapping(study.reserved)
                found["called"] = [called.name, to_mapping(called.config), reserved]
        return found

    @property
    def recipe(self) -> dict[str, Any]:
        """Return all that determines the result, as plain data.

        Without a trigger, the settings of poison are fixed: they have no effect.
        """
        recipe = super().recipe
        if not self.run.attacked:
            recipe["choice"]["config"] |= {"persistent": 0.0, "trigger_first": False}
        return recipe

    @property
    def is_loop(self) -> bool:
        """Return whether the run is one train loop: no defence is called between updates."""
        return self.defense is None

    @property
    def group(self) -> Hashable:
        """Return a key that is equal for runs of an attack whose updates are one program."""
        return (self.run.label, self.chosen.config.program) if self.is_loop else None

    @property
    def watch_every(self) -> int:
        """Return the number of steps in an update."""
        return steps_of(self.chosen.config, len(fresh_split(self.context).labels))

    @functools.cached_property
    def sets(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the fresh rows of each update for training [T, n] and for validation [T, m]."""
        labels, classes = fresh_split(self.context).labels, self.context.dataset.info.num_classes
        return divide(evolution_key(self.run.seed), labels, self.chosen.config, classes)

    @property
    def measure(self) -> Measure:
        """Return the measurement of models on drifted test images.

        It uses the first `measured` test images of the study, or all.
        """
        context, config = self.context, self.chosen.config
        count = context.config.measured or len(context.dataset.test.labels)
        test = Split(*(part[:count] for part in context.dataset.test))
        batch = context.config.loop.eval_batch
        return Measure(context.model, self.run.attack, context.dataset.info, config, test, batch)

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the train loop of all updates."""
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
        """Return a function that measures the model after an update; a control also saves it."""
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
        """Return the counts after the last update, on all test images under its drift."""
        whole = dataclasses.replace(self.measure, test=self.context.dataset.test)
        return whole(tree, inputs.victim.tree.trigger, self.chosen.config.updates)[0]

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Variables, list[LogRecord]]:
        """Return the model and log records of all updates, with the defence called in between."""
        assert self.defense is not None  # without one it is a loop
        images = len(reserved_split(self.context, self.run.seed).labels)
        watch, trigger = self.watch(inputs), inputs.victim.tree.trigger
        calls = (self.defense, evolution_key(self.run.seed), images, self.sets[0].shape[1])
        return defended_updates(self.loop(inputs), self.measure, trigger, *calls, watch, hooks)

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return its rows in results.csv and per_class.csv, with survivability columns."""
        columns = survival_columns(artifact.records, inputs.victim.counts.asr)
        return Findings(model_tables(self, artifact, None, columns))
