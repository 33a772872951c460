"""A backdoored model from a data set and an attack: the recipe that every study starts with."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.recipes import TrainConfig
from ..core.errors import AttackError
from ..core.random import stream
from ..core.records import LogRecord
from ..core.types import (
    Array,
    Attack,
    Dataset,
    Model,
    Prepared,
    Split,
    TrainState,
    Variables,
    check_built,
)
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from .loop import Hooks, TrainLoop, fit, trace_of
from .optim import make_optimizer
from .step import (
    Batches,
    Step,
    TrainData,
    classification_loss,
    init_state,
    joint_loss,
    make_batches,
    make_rows,
    make_train_step,
    view_trigger,
)
from .streaming import make_feed


class Backdoored(NamedTuple):
    """A model trained on poisoned data, the `trigger` that its attack made, and the `trace` of its training."""

    variables: Variables
    trigger: Any
    trace: dict[str, np.ndarray]


def train_backdoored(
    key: jax.Array,
    model: Model,
    dataset: Dataset,
    attack: Attack,
    config: TrainConfig = TrainConfig(),
    hooks: Hooks = Hooks(),
) -> Backdoored:
    """Trains `model` from scratch on `dataset.train`, poisoned by `attack` inside every step; everything follows from `key`.

    What the attack must do before (`Attack.preparation`) is done first, on a clean model trained by `config` where it wants one;
    `hooks` sees the training alone. The last step's variables are kept, as the field does. Raises `AttackError` where the data
    have too few images for the attack and `DivergedError` where the loss breaks.
    """
    check_built(model=model, attack=attack)
    prepared = None
    if attack.preparation:
        wanted = attack.preparation.surrogate
        clean = fit(victim_loop(key, model, dataset, None, config))[0].variables if wanted else None
        prepared, _ = prepare(key, model, clean, dataset, attack)
    loop = victim_loop(key, model, dataset, attack, config, prepared)
    state, lines = fit(loop, hooks)
    return Backdoored(state.variables, trigger_of(loop, state), trace_of(lines))


def prepare(
    key: jax.Array,
    model: Model,
    clean: Variables | None,
    dataset: Dataset,
    attack: Attack,
    hooks: Hooks = Hooks(),
) -> tuple[Prepared, list[LogRecord]]:
    """What `attack` computes before `victim_loop` runs with the same key, and the lines logged on the way.

    `clean` are variables of `model` trained on the clean set, where the attack wants them (`Preparation.surrogate`).
    """
    if attack.preparation is None:
        raise AttackError("computes nothing before the training")
    poisoned = poisoned_rows(key, attack, dataset.train.labels)
    return attack.preparation.run(key, model, clean, dataset, poisoned, hooks)


def victim_loop(
    key: jax.Array,
    model: Model,
    dataset: Dataset,
    attack: Attack | None,
    config: TrainConfig,
    prepared: Prepared | None = None,
    *,
    streamed: bool = False,
) -> TrainLoop:
    """The loop of `train_backdoored`, with what was `prepared`; without an attack, of clean training. Loops that differ in the key
    alone have one step in common.

    `streamed` leaves the images on the host and brings each step its batch: the same rows, the same numbers. Raises `AttackError`
    where an attack has a preparation and nothing was `prepared`.
    """
    if attack and attack.preparation and prepared is None:
        raise AttackError(
            "what the attack computes before the training is not there; a second run computes it"
        )
    split = dataset.train
    size = len(split.labels)
    steps_per_epoch, batch_size = epoch_plan(size, config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * steps_per_epoch
    tx = make_optimizer(config.optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
    rows = make_rows(size=size, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    batches = make_batches(
        rows=rows, augment=make_augment(dataset.info, config.augment), attack=attack
    )
    trained = _trained_by(attack)
    step = _victim_step(model, tx, batches, trained)
    if attack is None:
        poisoned, trigger = jnp.zeros(size, bool), {}
    else:
        poisoned = poisoned_rows(key, attack, split.labels)
        trigger = prepared.trigger if prepared else attack.init(stream(key, "trigger"))
    carry = {"trigger": trigger} if trained else ()
    state = init_state(model.init(stream(key, "init")), tx, stream(key, "train"), carry, trained)
    array = np if streamed else jnp
    images = array.asarray(split.images)
    if prepared and prepared.images is not None:
        images = _replaced(images, np.flatnonzero(poisoned), prepared.images)
    split = Split(images, array.asarray(split.labels))
    if streamed:
        feed = make_feed(split, np.asarray(poisoned), rows, state.key, steps)
        return TrainLoop(step, state, TrainData(None, None, trigger), steps, feed)
    return TrainLoop(step, state, TrainData(split, poisoned, trigger), steps)


def _trained_by(attack: Attack | None) -> dict[str, optax.GradientTransformation]:
    """Return what trains the trigger with the model, by its name in the carry; nothing for a trigger that stays as it is."""
    return {"trigger": attack.optimizer} if attack and attack.optimizer else {}


def _victim_step(
    model: Model,
    tx: optax.GradientTransformation,
    batches: Batches,
    trained: dict[str, optax.GradientTransformation],
) -> Step:
    """Build the step of a training on poisoned batches, which trains the trigger too where it is `trained`."""
    loss = classification_loss(model)
    if not trained:
        return make_train_step(tx, loss=loss, batches=batches)
    return make_train_step(
        tx, loss=joint_loss(loss), batches=batches, view=view_trigger, trained=trained
    )


def _replaced(images: Any, rows: np.ndarray, others: Any) -> Any:
    """A copy of the images, on the device or on the host, with `others` in `rows`."""
    if isinstance(images, jax.Array):
        return images.at[rows].set(others)
    images = images.copy()
    images[rows] = others
    return images


def trigger_of(loop: TrainLoop, state: TrainState) -> Any:
    """Return the trigger at the end of a training: what became of a trained one, else the one that the loop began with."""
    return state.carry["trigger"].value if "trigger" in state.carry else loop.data.trigger


def poisoned_rows(key: jax.Array, attack: Attack, labels: Array) -> Array:
    """Which of the training rows [N] `train_backdoored` poisons under `key`."""
    return attack.select(stream(key, "select"), labels)
