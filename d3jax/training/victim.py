"""Training of the victim: a backdoored model, from a data set and an attack."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.recipes import SamConfig, TrainConfig
from ..core.checks import check_built, check_labelled
from ..core.errors import AttackError, ConfigError
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
    """A trained backdoored model: `variables`, the attack's `trigger`, and the metrics' `trace`."""

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
    """Train `model` from scratch on `dataset.train`, poisoned by `attack` inside every step.

    All randomness follows from `key`. `Attack.preparation` runs first, on a clean model trained by
    `config` where the attack wants one. `hooks` apply only to the training on poisoned data. The
    result has the variables of the last step, as is usual in the field.

    Raises `DataError` where images are not uint8 or labels are not classes, `AttackError` where the
    data set has too few images for the attack, and `DivergedError` where the loss is not finite.
    """
    check_built(model=model, attack=attack, dataset=dataset)
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"config: want a d3jax.TrainConfig, got a {type(config).__name__}")
    check_labelled("dataset.train", dataset.train, dataset.info.num_classes)
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
    """Run an attack's preparation before the victim's training; return its result and log records.

    `victim_loop` must then get the same key. `clean` are variables of `model` trained on the clean
    set, where the attack wants them (`Preparation.surrogate`). Raises `AttackError` for an attack
    without a preparation.
    """
    if attack.preparation is None:
        raise AttackError("the attack has no preparation that runs before the training")
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
    """Build the `TrainLoop` that trains a model from scratch, on poisoned images or on clean ones.

    It is that of `train_backdoored`, or without an attack of clean training. `prepared` is the
    result of `prepare`. Loops that differ only in the key can run with one step. `streamed` leaves
    the images on the host and brings each step its batch, with the same rows and the same numbers.

    Raises `AttackError` where an attack has a preparation and nothing is `prepared`.
    """
    if attack and attack.preparation and prepared is None:
        raise AttackError(
            "the result of the attack's preparation is missing; run the study again to compute it"
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
    step = _victim_step(model, tx, batches, attack, config.sam)
    covers = None
    if attack is None:
        poisoned, trigger = jnp.zeros(size, bool), {}
    else:
        poisoned = poisoned_rows(key, attack, split.labels)
        covers = cover_rows(key, attack, split.labels)
        trigger = prepared.trigger if prepared else attack.init(stream(key, "trigger"))
    carry = {"trigger": trigger} if trained else ()
    state = init_state(model.init(stream(key, "init")), tx, stream(key, "train"), carry, trained)
    array = np if streamed else jnp
    images = array.asarray(split.images)
    if prepared and prepared.images is not None:
        images = _replaced(images, np.flatnonzero(poisoned), prepared.images)
    split = Split(images, array.asarray(split.labels))
    if streamed:
        on_host = None if covers is None else np.asarray(covers)
        feed = make_feed(split, np.asarray(poisoned), rows, state.key, steps, on_host)
        return TrainLoop(step, state, TrainData(None, None, trigger), steps, feed)
    return TrainLoop(step, state, TrainData(split, poisoned, trigger, covers=covers), steps)


def _trained_by(attack: Attack | None) -> dict[str, optax.GradientTransformation]:
    """Return {"trigger": optimiser} for an attack whose trigger is trained with the model, else {}.

    The key is the name of the trigger in the carry of the train state.
    """
    return {"trigger": attack.optimizer} if attack and attack.optimizer else {}


def _victim_step(
    model: Model,
    tx: optax.GradientTransformation,
    batches: Batches,
    attack: Attack | None,
    sam: SamConfig,
) -> Step:
    """Build the victim's train step on poisoned batches.

    It also updates a trigger that is trained with the model, and uses the attack's objective.
    """
    loss, trained = classification_loss(model), _trained_by(attack)
    if attack and attack.objective:
        loss = attack.objective(loss)
    if not trained:
        return make_train_step(tx, loss=loss, batches=batches, sam=sam)
    return make_train_step(
        tx, loss=joint_loss(loss), batches=batches, view=view_trigger, trained=trained, sam=sam
    )


def _replaced(images: Any, rows: np.ndarray, others: Any) -> Any:
    """Return a copy of an image array in which the images at row numbers `rows` are `others`.

    It is on the device or on the host, as `images` are.
    """
    if isinstance(images, jax.Array):
        return images.at[rows].set(others)
    images = images.copy()
    images[rows] = others
    return images


def trigger_of(loop: TrainLoop, state: TrainState) -> Any:
    """Return an attack's trigger at the end of the victim's training.

    It is the trained trigger of the state's carry, or else the trigger that the loop began with.
    """
    return state.carry["trigger"].value if "trigger" in state.carry else loop.data.trigger


def poisoned_rows(key: jax.Array, attack: Attack, labels: Array) -> Array:
    """Return the mask [N] of the training images that `train_backdoored` poisons under `key`."""
    return attack.select(stream(key, "select"), labels)


def cover_rows(key: jax.Array, attack: Attack, labels: Array) -> Array | None:
    """Return the mask [N] of the cover images of `train_backdoored` under `key`, None without.

    They carry a trigger and keep their labels.
    """
    return attack.covers(stream(key, "select"), labels) if attack.covers else None
