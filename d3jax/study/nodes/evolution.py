"""An evolution run: a model, backdoored or clean, updated again and again on fresh data."""

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
    """All updates of the victim; `defense` is called after some of them, if there is one.

    The control, a run without a backdoor, keeps every update's model in `folder`/updates.
    """

    victim: Node
    defense: Repair | None = None
    prepared: Node | None = None

    kind = title = role = "evolution"
    shared = True
    read_again = ("victim",)

    @property
    def settings(self) -> dict[str, Any]:
        """The fresh images, the order of the drifts, and the defence that is called."""
        study, config = self.context.config, self.chosen.config
        found = {
            "fresh": [study.fresh, self.context.fresh_hash],
            "measured": study.measured,
            # Their order counts, which a mapping's hash does not know.
            "drift": list(config.drift.items()),
        }
        for called in study.defenses:
            if called.label == config.defense:
                reserved = to_mapping(study.reserved)
                found["called"] = [called.name, to_mapping(called.config), reserved]
        return found

    @property
    def recipe(self) -> dict[str, Any]:
        """All that makes it; poison without a trigger makes nothing."""
        recipe = super().recipe
        if not self.run.attacked:
            recipe["choice"]["config"] |= {"persistent": 0.0, "trigger_first": False}
        return recipe

    @property
    def is_loop(self) -> bool:
        """Whether no defence is called in between."""
        return self.defense is None

    @property
    def group(self) -> Hashable:
        """Runs of an attack whose updates are one program."""
        return (self.run.label, self.chosen.config.program) if self.is_loop else None

    @property
    def watch_every(self) -> int:
        """Once an update."""
        return steps_of(self.chosen.config, len(fresh_split(self.context).labels))

    @functools.cached_property
    def sets(self) -> tuple[np.ndarray, np.ndarray]:
        """The fresh rows that each update learns [T, n], and those that it keeps [T, m]."""
        labels, classes = fresh_split(self.context).labels, self.context.dataset.info.num_classes
        return divide(evolution_key(self.run.seed), labels, self.chosen.config, classes)

    @property
    def measure(self) -> Measure:
        """What counts on drifted test images."""
        context, config = self.context, self.chosen.config
        count = context.config.measured or len(context.dataset.test.labels)
        test = Split(*(part[:count] for part in context.dataset.test))
        batch = context.config.loop.eval_batch
        return Measure(context.model, self.run.attack, context.dataset.info, config, test, batch)

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the loop of all updates."""
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
        """Measure the end of an update; the control keeps its model."""
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
        """Return the counts after the last update, on all test images, under its drift."""
        whole = dataclasses.replace(self.measure, test=self.context.dataset.test)
        return whole(tree, inputs.victim.tree.trigger, self.chosen.config.updates)[0]

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Variables, list[LogRecord]]:
        """Return the model after all updates, with the defence called between them."""
        assert self.defense is not None  # without one it is a loop
        images = len(reserved_split(self.context, self.run.seed).labels)
        watch, trigger = self.watch(inputs), inputs.victim.tree.trigger
        calls = (self.defense, evolution_key(self.run.seed), images, self.sets[0].shape[1])
        return defended_updates(self.loop(inputs), self.measure, trigger, *calls, watch, hooks)

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return its rows in results.csv and per_class.csv."""
        columns = survival_columns(artifact.records, inputs.victim.counts.asr)
        return Findings(model_tables(self, artifact, None, columns))
