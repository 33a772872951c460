"""An evolution run: a model, backdoored or clean, updated again and again on fresh data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...config.loading import to_mapping
from ...config.study import Choice
from ...core.images import as_float, as_levels
from ...core.random import stream
from ...core.types import Defense, Split, TrainState, Variables
from ...data.drift import compose
from ...evolution.measure import (
    distance,
    drifted_accuracy,
    drifted_measure,
    shifted,
    strengths,
)
from ...evolution.survivability import survivability
from ...evolution.updates import (
    EvolutionConfig,
    divide,
    drift_keys,
    evolution_loop,
    lineage_key,
    steps_of,
    update_rates,
)
from ...metrics.attack_success import Counts
from ...results.artifacts import Row
from ...results.survival import TAUS
from ...runtime import checkpoint
from ...training.loop import Hooks, LogRecord, TrainLoop, fit
from ...training.poisoned_set import poisoned_split
from ..context import StudyContext, reserved_split
from .base import Artifact, Inputs, Node, Tables, cache_folder, model_tables, recipe_hash
from .first_stage import prepared_of


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvolutionNode(Node):
    """All updates of the victim; `defense` is called after some of them, if there is one.

    The control, a run without a backdoor, keeps every update's model in `folder`/updates.
    """

    kind, title, listed = "evolution", "evolution", True
    optional, tables_need = (), ("victim",)
    victim: Node
    choice: Choice
    defense: Defense | None = None
    prepared: Node | None = None

    @property
    def config(self) -> EvolutionConfig:
        """How the model evolves."""
        return self.choice.config

    @property
    def what(self) -> str:
        """The evolution's label."""
        return self.choice.label

    @property
    def label(self) -> str:
        """The evolution's label."""
        return self.choice.label

    @property
    def recipe(self) -> dict[str, Any]:
        """The evolution, the fresh images, the victim, and the defence that is called."""
        context, run, config = self.context, self.run, self.config
        settings = to_mapping(config)
        if not run.attacked:  # where there is no trigger these say nothing
            settings |= {"persistent": 0.0, "trigger_first": False}
        recipe = {
            "evolution": settings,
            "victim": run.recipe,
            "seed": run.seed,
            "fresh": context.config.fresh,
            "measured": context.config.measured,
            "images": context.fresh_hash,
            # Their order counts, which a mapping's hash does not know.
            "drift": list(config.drift.items()),
        }
        return recipe | (self._defense_recipe() if self.defense else {})

    def _defense_recipe(self) -> dict[str, Any]:
        config = self.context.config
        called = next(one for one in config.defenses if one.label == self.config.defense)
        reserved = to_mapping(config.reserved)
        return {"called": called.name, "defense": to_mapping(called.config), "reserved": reserved}

    @property
    def folder(self) -> Path:
        """In the cache."""
        start = f"{self.context.dataset.info.name}-{self.run.label}-evolution-seed{self.run.seed}"
        return cache_folder(self.context) / f"{start}-{recipe_hash(self.recipe)}"

    @property
    def needs(self) -> dict[str, Node]:
        """The victim, and what its attack prepared where its training set is replayed."""
        prepared = {"prepared": self.prepared} if self.prepared else {}
        return {"victim": self.victim, **prepared}

    @property
    def is_loop(self) -> bool:
        """Whether no defence is called in between."""
        return self.defense is None

    @property
    def group(self) -> Hashable:
        """Runs of an attack whose updates are one program."""
        return (self.run.label, self.config.program) if self.is_loop else None

    @property
    def steps(self) -> int:
        """Steps in an update."""
        return steps_of(self.config, len(self.context.fresh.labels))

    @property
    def watch_every(self) -> int:
        """Once an update."""
        return self.steps

    @property
    def sets(self) -> tuple[np.ndarray, np.ndarray]:
        """The fresh rows that each update learns [T, n], and those that it keeps [T, m]."""
        labels, classes = self.context.fresh.labels, self.context.dataset.info.num_classes
        return divide(lineage_key(self.run.seed), labels, self.config, classes)

    def like(self) -> Variables:
        """Return the shapes of the variables."""
        return jax.eval_shape(self.context.model.init, jax.random.key(0))

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the loop of all updates."""
        context, run, victim = self.context, self.run, inputs.victim.tree
        replayed = None
        if self.config.replay:
            prepared = prepared_of(inputs)
            given = (run.attack, context.dataset.train, prepared and prepared.tree)
            replayed, _ = poisoned_split(run.key, *given)
        data = (replayed, context.fresh, run.attack, victim.trigger)
        return evolution_loop(
            lineage_key(run.seed),
            context.model,
            victim.variables,
            *data,
            self.config,
            context.dataset.info,
        )

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Measure the end of an update.

        Measured on the drifted test images: ACC, ASR, RA and by how much the trigger raises its
        class's logit (`score`); the same on those of the next update (`next_…`); ACC on the fresh
        images kept from learning (`valid_acc`); how far the parameters moved (`moved`, the norm
        over all of them); the sum of the update's rates. After the first update the model before
        it is measured too (`first_…`).
        """
        config, context, steps = self.config, self.context, self.steps
        total = float(update_rates(config, steps).sum())
        kept = self.sets[1]

        def watch(state: TrainState) -> LogRecord:
            update = int(state.step) // steps
            moved = float(distance(state.variables.params, start_params(state)))
            record = {"update": update, "moved": moved, "lr_sum": total}
            record |= self._rates("watch_", inputs, state.variables, update)
            if "watch_asr" not in record:
                checkpoint.save(self.folder / "updates" / str(update), state.variables)
            if kept.shape[1]:
                valid = Split(*(np.asarray(part)[kept[update - 1]] for part in context.fresh))
                given = (valid, config, update, context.config.loop.eval_batch)
                record["valid_acc"] = drifted_accuracy(context.model, state.variables, *given)
            if update < config.updates:
                record |= self._rates("next_", inputs, state.variables, update + 1)
            if update == 1:
                record |= self._rates("first_", inputs, inputs.victim.tree.variables, 1)
            return record

        return watch

    def _rates(self, prefix: str, inputs: Inputs, variables: Variables, update: int) -> LogRecord:
        """Return the rates on the test images as they are at an update."""
        counts, score = self.measure(inputs, variables, update)
        if not counts.triggered.sum():
            return {f"{prefix}acc": counts.acc}
        rates = {f"{prefix}acc": counts.acc, f"{prefix}asr": counts.asr, f"{prefix}ra": counts.ra}
        return rates | {f"{prefix.removeprefix('watch_')}score": score}

    def measure(self, inputs: Inputs, variables: Variables, update: int) -> tuple[Counts, float]:
        """Return counts and score on the measured test images of an update."""
        test = measured_images(self.context, self.config, update)
        return self._count(inputs, variables, test, update)

    def count(self, inputs: Inputs, tree: Variables) -> Counts:
        """Return the counts after the last update, on all test images, under its drift."""
        last, classes = self.config.updates, self.context.dataset.info.num_classes
        test = shifted(self.context.dataset.test, self.config, last, classes)
        return self._count(inputs, tree, test, last)[0]

    def _count(
        self, inputs: Inputs, variables: Variables, test: Split, update: int
    ) -> tuple[Counts, float]:
        context = self.context
        options = (context.dataset.info, self.config, context.config.loop.eval_batch)
        measure = drifted_measure(context.model, self.run.attack, *options)
        trigger = inputs.victim.tree.trigger
        return measure(variables, trigger, test, strengths(self.config, update))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Variables, list[LogRecord]]:
        """Return the model after all updates, with the defence called between them.

        It has as many images as the study reserves, but of those that the update learned, drifted
        as they were, and of these such as nobody poisoned: a defender who looks through them. What
        it makes goes into the next update, which begins with momentum 0, `carried` or not.
        `trained_acc` and `trained_asr` are those before it, all others those after it.
        """
        loop, steps, watch = self.loop(inputs), self.steps, self.watch(inputs)
        state, records, seconds = loop.state, [], 0.0
        for update in range(1, self.config.updates + 1):
            part = loop._replace(state=state, steps=update * steps)
            state, logged = fit(part, hooks.within(f"update{update}"))
            logged = [line | {"seconds": line["seconds"] + seconds} for line in logged]
            seconds, trained = logged[-1]["seconds"], {}
            if self._is_due(update):
                counts, _ = self.measure(inputs, state.variables, update)
                trained = {"trained_acc": counts.acc}
                trained |= {"trained_asr": counts.asr} if counts.triggered.sum() else {}
                repaired = self._call(loop, state, update, hooks)
                seconds += float(np.max(repaired.trace.get("seconds", 0.0)))
                state = with_variables(state, repaired.variables)
            logged[-1] |= trained | watch(state)
            records += logged
        return state.variables, records

    def _is_due(self, update: int) -> bool:
        call, left = divmod(update, self.config.every)
        return not left and (not self.config.calls or call <= self.config.calls)

    def _call(self, loop: TrainLoop, state: TrainState, update: int, hooks: Hooks) -> Any:
        key = stream(lineage_key(self.run.seed), "defense")
        images = self._inspected(loop, update)
        given = (jax.random.fold_in(key, update), self.context.model, state.variables, images)
        return self.defense.repair(*given, hooks.within(f"defense{update}"))

    def _inspected(self, loop: TrainLoop, update: int) -> Split:
        """Return the clean images of an update that the defence may use."""
        config, context = self.config, self.context
        learned = self.sets[0].shape[1]
        order, poisoned = loop.data.loss_inputs["order"], np.asarray(loop.data.poisoned)
        first = len(order) - learned * (config.updates - update + 1)
        clean = first + np.flatnonzero(~poisoned[first : first + learned])
        places = clean[: len(reserved_split(context, self.run.seed).labels)]
        images, labels = (part[order[places]] for part in loop.data.split)
        keys = drift_keys(loop.state.key, places)
        drift = compose(tuple(config.drift), context.dataset.info.shape[2])
        drifted = drift(keys, as_float(images), strengths(config, update))
        return Split(as_levels(drifted).astype(jnp.uint8), labels)

    def tables(self, inputs: Inputs, artifact: Artifact) -> Tables:
        """Return its rows in results.csv and per_class.csv."""
        before = inputs.victim.counts
        return model_tables(self, artifact, None, survival_columns(artifact.records, before.asr))


def start_params(state: TrainState) -> Any:
    """Return the parameters at the start of the update that a state is in."""
    return state.opt_state[1]


def with_variables(state: TrainState, variables: Variables) -> TrainState:
    """Return a state that goes on from other variables, with momentum 0."""
    momentum = jax.tree.map(jnp.zeros_like, state.opt_state[0])
    opt_state = (momentum, state.opt_state[1])
    return dataclasses.replace(state, variables=variables, opt_state=opt_state)


def measured_images(context: StudyContext, config: EvolutionConfig, update: int) -> Split:
    """Return the test images that are measured after an update."""
    count = context.config.measured or len(context.dataset.test.labels)
    test = Split(*(part[:count] for part in context.dataset.test))
    return shifted(test, config, update, context.dataset.info.num_classes)


def updates_of(records: list[LogRecord]) -> list[LogRecord]:
    """Return the log records that end an update."""
    return [record for record in records if "update" in record]


def survival_columns(records: list[LogRecord], before: float) -> Row:
    """Return S_τ as columns of results.csv, and whether each is censored; {} without a trigger.

    Where the ASR `before` the first update is below τ there was nothing to survive: None.
    """
    asr = [record["watch_asr"] for record in updates_of(records) if "watch_asr" in record]
    columns: Row = {}
    for tau in TAUS if asr else ():
        count, censored = survivability(asr, tau)
        there = not math.isnan(before) and before >= tau
        columns[f"survived_{tau:g}"] = count if there else None
        columns[f"survived_{tau:g}_censored"] = censored if there else None
    return columns
