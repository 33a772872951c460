"""The first stage of a training-time defence, which defences that begin alike share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ...core.random import stream
from ...core.types import Split, TrainingDefense, TrainState, Variables
from ...metrics.attack_success import Counts
from ...metrics.sample_scores import scores_of
from ...training.loop import LogRecord, TrainLoop
from ...training.scan import whole_calls
from ..attack_run import AttackRun, untrusted_data
from ..context import StudyContext
from .base import Inputs, Node, cache_folder, recipe_hash, watched_rates

WATCHED = 1000
"""Images of each sort (test, clean and poisoned training) that are measured along the way."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FirstStageNode(Node):
    """The first stage of `defense` on the poisoned set, kept in the cache."""

    kind, title = "first_stage", "first stage"
    victim: Node
    defense: TrainingDefense
    prepared: Node | None = None

    is_loop = True

    @property
    def what(self) -> str:
        """A name that no other settings have."""
        return f"first_stage-{recipe_hash(self.defense.settings)}"

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings of the first stage alone."""
        settings = self.defense.settings
        return {"beginning": settings, "seed": self.run.seed, "victim": self.run.recipe}

    @property
    def folder(self) -> Path:
        """In the cache."""
        start = f"{self.context.dataset.info.name}-{self.run.label}-first_stage"
        name = f"{start}-seed{self.run.seed}-{recipe_hash(self.recipe)}"
        return cache_folder(self.context) / name

    @property
    def needs(self) -> dict[str, Node]:
        """The victim, for its trigger, and what the attack prepared."""
        prepared = {"prepared": self.prepared} if self.prepared else {}
        return {"victim": self.victim, **prepared}

    @property
    def watch_every(self) -> int:
        """Once an epoch, in whole calls of the loop."""
        epoch = self.defense.epoch(len(self.context.dataset.train.labels))
        return whole_calls(epoch, self.context.config.loop.steps_per_call)

    def like(self) -> Variables:
        """Return the shapes of the variables."""
        return jax.eval_shape(self.context.model.init, jax.random.key(0))

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the loop of the first stage."""
        data, _ = untrusted_data(self.context, self.run, prepared_of(inputs))
        return self.defense.begin(training_key(self.run), self.context.model, data)

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Measure how clean and poisoned images are learned."""
        return training_watch(self.context, self.run, inputs)

    def count(self, inputs: Inputs, tree: Variables) -> Counts:
        """Return its counts under the victim's trigger."""
        return self.run.evaluate(tree, inputs.victim.tree.trigger, self.context.dataset.test)


def prepared_of(inputs: Inputs) -> Any:
    """Return the artifact of what the attack prepared; None where it prepares nothing."""
    return getattr(inputs, "prepared", None)


def training_key(run: AttackRun) -> jax.Array:
    """Return the key of all that is random in the training-time defences of a run."""
    return stream(jax.random.key(run.seed), "training")


def training_watch(
    context: StudyContext, run: AttackRun, inputs: Inputs
) -> Callable[[TrainState], LogRecord]:
    """Return a watch of ACC and ASR on some test images, and of training images by their flags.

    Of some clean and some poisoned training images, under the labels they were given: mean
    cross-entropy, mean entropy and the share taken for the given label. For plots only.
    """
    test = _some(context.dataset.test, np.arange(len(context.dataset.test.labels)))
    parts: dict[str, Split] = {}

    def watch(state: TrainState) -> LogRecord:
        parts.update(parts or _by_flag(*untrusted_data(context, run, prepared_of(inputs))))
        counts = run.evaluate(state.variables, inputs.victim.tree.trigger, test)
        record = watched_rates(counts)
        for name, split in parts.items():
            record |= _learned(context, state.variables, name, split)
        return record

    return watch


def _by_flag(split: Split, flags: np.ndarray) -> dict[str, Split]:
    """Return some clean and some poisoned images; of an empty sort none."""
    rows = {"clean": np.flatnonzero(~flags), "poisoned": np.flatnonzero(flags)}
    return {name: _some(split, chosen) for name, chosen in rows.items() if len(chosen)}


def _learned(context: StudyContext, variables: Variables, name: str, split: Split) -> LogRecord:
    names = {"cross_entropy": "ce", "entropy": "entropy", "right": "right"}
    scores = scores_of(context.model, variables, split, tuple(names))
    return {f"{name}_{short}": float(scores[score].mean()) for score, short in names.items()}


def _some(split: Split, rows: np.ndarray) -> Split:
    """Return at most `WATCHED` of the rows, spread evenly: a set may be sorted by class."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(WATCHED, len(rows))).astype(int)]
    return Split(*(np.asarray(part)[chosen] for part in split))
