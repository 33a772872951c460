"""Measurements of an evolving model on test images that have drifted as far as at an update."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.images import as_float
from ..core.random import stream
from ..core.records import LogRecord
from ..core.types import Attack, DataInfo, Model, Split, TrainState, Variables
from ..data.batched import batched_map
from ..data.drift import compose, keys_of, label_shift
from ..metrics.attack_success import Counts, make_asr, make_measure
from ..runtime.compilation import fast
from .config import EvolutionConfig
from .fresh_sets import update_rates


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """A measurement of an evolving model on test images that have drifted as far as at an update.

    The test images are drifted, and their labels are shifted by resampling.
    """

    model: Model
    attack: Attack
    info: DataInfo
    config: EvolutionConfig
    test: Split
    batch_size: int

    def __call__(self, variables: Variables, trigger: Any, update: int) -> tuple[Counts, float]:
        """Return a model's `Counts` on test images drifted as at an update, and a trigger's score.

        The score is by how much the trigger raises the logit of its class.
        """
        return self._call(make_measure, variables, trigger, update)

    def asr(self, variables: Variables, trigger: Any, update: int) -> float:
        """Return a model's ASR alone on test images drifted as at an update of an evolution run.

        It has half the cost of all counts.
        """
        return self._call(make_asr, variables, trigger, update)

    def rates(self, variables: Variables, trigger: Any, update: int) -> LogRecord:
        """Return a dict of a model's ACC, ASR, RA and trigger score under an update's drift.

        Without triggered images it has `acc` alone.
        """
        counts, score = self(variables, trigger, update)
        if not counts.triggered.sum():
            return {"acc": counts.acc}
        return {"acc": counts.acc, "asr": counts.asr, "ra": counts.ra, "score": score}

    def accuracy(self, variables: Variables, images: Split, update: int) -> float:
        """Return a model's ACC on any images, drifted as at an update of an evolution run."""
        drift = (tuple(self.config.drift), self.info.shape[2])
        predict = functools.partial(_classes, self.model, *drift, variables)
        amounts = strengths(self.config, update)
        rows = np.arange(len(images.labels))

        def classes(pixels: jax.Array, rows: np.ndarray) -> jax.Array:
            return predict(keys_of(jax.random.key(0), rows), pixels, amounts)

        predicted = batched_map(classes, images.images, rows, batch_size=self.batch_size)
        labels = np.asarray(images.labels)
        return float((predicted == labels).mean())

    def _call(self, make: Callable[..., Any], variables: Any, trigger: Any, update: int) -> Any:
        info, config = self.info, self.config
        drift = (tuple(config.drift), config.trigger_first)
        given = (self.model, self.attack, info.num_classes, info.shape[2], *drift)
        test = shifted(self.test, config, update, info.num_classes)
        count = _built(make, *given, self.batch_size)
        return count(variables, trigger, test, strengths(config, update))


@functools.lru_cache(maxsize=64)
def _built(make: Callable[..., Any], *given: Any) -> Any:
    """Return the measuring function built by `make`, cached for evolution runs of equal drift."""
    model, attack, classes, channels, drift, trigger_first, batch = given
    return make(model, attack, classes, batch, compose(drift, channels), trigger_first)


def strengths(config: EvolutionConfig, update: int) -> jax.Array:
    """Return the strength of every kind of drift at an update of an evolution run, as float32."""
    return jnp.asarray([update * value for value in config.drift.values()], jnp.float32)


def shifted(test: Split, config: EvolutionConfig, update: int, num_classes: int) -> Split:
    """Resample test images to the shifted class frequencies at an update of an evolution run.

    Without `label_shift`, these are the test images themselves.
    """
    if not config.label_shift:
        return test
    key = jax.random.fold_in(stream(jax.random.key(0), "test"), update)
    rows = label_shift(key, jnp.asarray(test.labels), config.label_shift * update, num_classes)
    return Split(*(part[rows] for part in test))


def update_watch(
    measure: Measure, victim: Any, kept: Sequence[Split], steps: int
) -> Callable[[TrainState], LogRecord]:
    """Build `watch(state)`, which measures an evolving model after every update of `steps` steps.

    The model is measured on the drifted test images, as `watch_acc`, `watch_asr`, `watch_ra` and
    `score`. On those of the next update, the columns are `next_…`. After the first update, the
    `victim` is measured too, on the test images of that update, as `first_…`. `valid_acc` is the
    ACC on the fresh images of the update that are held out (`kept`, by update). `moved` is how far
    the parameters moved, as the norm over all of them. `lr_sum` is the sum of the update's learning
    rates.
    """
    config = measure.config
    total = float(update_rates(config, steps).sum())

    def watch(state: TrainState) -> LogRecord:
        update = int(state.step) // steps
        moved = float(_distance(state.variables.params, state.carry["start_params"]))
        record: LogRecord = {"update": update, "moved": moved, "lr_sum": total}

        def rates(prefix: str, variables: Variables, at: int) -> LogRecord:
            found = measure.rates(variables, victim.trigger, at)
            return {f"{prefix}_{name}": value for name, value in found.items()}

        now = rates("watch", state.variables, update)
        record |= {name.replace("watch_score", "score"): value for name, value in now.items()}
        if len(kept[update - 1].labels):
            record["valid_acc"] = measure.accuracy(state.variables, kept[update - 1], update)
        if update < config.updates:
            record |= rates("next", state.variables, update + 1)
        if update == 1:
            record |= rates("first", victim.variables, 1)
        return record

    return watch


@functools.partial(fast, static=3)
def _classes(
    model: Model,
    drift: tuple[str, ...],
    channels: int,
    variables: Variables,
    keys: jax.Array,
    images: jax.Array,
    amounts: jax.Array,
) -> jax.Array:
    moved = compose(drift, channels)(keys, as_float(images), amounts)
    return model.apply(variables, moved, train=False).logits.argmax(-1)


@jax.jit
def _distance(a: Any, b: Any) -> jax.Array:
    """Return the norm of the difference of two parameter trees, over all leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs))
