"""Evolving models: all updates of a model on fresh data, as one train loop.

Source: Li, Bhagoji, Chen, Zheng and Zhao, "On the Permanence of Backdoors in Evolving Models"
(arXiv 2206.04677). The paper's text was not available. The structure of the loop follows the
abstracts, and its details are d3jax's. The first model is trained on poisoned data. Every update
continues its training on a fresh, disjoint set that has drifted further. Because all updates are
one train loop, resume, members and logging work as in any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..attacks.poisoning import poison_rows
from ..core.images import as_float
from ..core.random import stream
from ..core.types import (
    Array,
    Attack,
    Batch,
    DataInfo,
    Model,
    Params,
    Split,
    TrainState,
    Variables,
)
from ..data.augment import make_augment
from ..data.batching import batch_rows
from ..data.drift import compose, keys_of
from ..runtime.sharding import shard_batch
from ..training.loop import TrainLoop
from ..training.optim import restart_every, scale_by_step_rate
from ..training.step import (
    Batches,
    Begin,
    Reported,
    Step,
    TrainData,
    classification_loss,
    init_state,
    make_train_step,
)
from .config import EvolutionConfig
from .fresh_sets import check_evolution, divide, persistent_rows, steps_of, update_rates


def evolution_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    replayed: Split | None,
    fresh: Split,
    attack: Attack,
    trigger: Any,
    config: EvolutionConfig,
    info: DataInfo,
) -> TrainLoop:
    """Build the `TrainLoop` of an evolution run: updates of a model on fresh sets, in turn.

    `fresh` is cut into `config.updates` equal sets (`divide`). `data.loss_inputs["order"]` lists
    the rows that they learn, set after set. With replay, these come after the rows of the
    `replayed` images, the first training set as it was released (`poisoned_split`). Without replay,
    `replayed` may be None. The images are then those of `fresh` itself, of which members that run
    together hold one copy. The carry holds the `start_params` of the update.

    Raises `ConfigError` where the fresh images do not fill a batch per update, where a drift does
    not suit them, or where the attack lacks rows. Raises `TypeError` for replay without `replayed`.
    """
    check_evolution(config, len(fresh.labels), info)
    learned, _ = divide(key, fresh.labels, config, info.num_classes)
    order, size, per_update = learned.ravel(), learned.shape[1], steps_of(config, len(fresh.labels))
    owned = persistent_rows(key, np.asarray(fresh.labels)[order], size, attack, config)
    split, past = Split(*map(jnp.asarray, fresh)), 0
    if config.replay:
        if replayed is None:
            raise TypeError("replay: needs the poisoned training set, got replayed=None")
        past = len(replayed.labels)
        split = Split(
            *(
                jnp.concatenate([jnp.asarray(old), new])
                for old, new in zip(replayed, split, strict=True)
            )
        )
        order = np.concatenate([np.arange(past), past + order])
        # The replayed images contain their trigger already.
        owned = np.concatenate([np.zeros(past, bool), owned])
    loss_inputs = {
        "rates": jnp.asarray(update_rates(config, per_update)),
        "strengths": jnp.asarray(list(config.drift.values()), jnp.float32),
        "order": jnp.asarray(order, jnp.int32),
    }
    data = TrainData(split, jnp.asarray(owned), trigger, loss_inputs=loss_inputs)
    step = evolution_step(
        model, attack, config, info, size=size, past=past, per_epoch=per_update // config.epochs
    )
    tx = update_optimizer(config, per_update)
    state = init_state(variables, tx, stream(key, "updates"), {"start_params": variables.params})
    return TrainLoop(step, state, data, config.updates * per_update)


def drift_keys(key: jax.Array, places: Array) -> jax.Array:
    """Return the random keys of the drift of images, by their `places` in an evolution run's order.

    An image thus drifts in the same way whenever it is learned. `key` is that of the train state.
    """
    return keys_of(stream(key, "drift"), places)


def evolution_step(
    model: Model,
    attack: Attack,
    config: EvolutionConfig,
    info: DataInfo,
    *,
    size: int,
    past: int,
    per_epoch: int,
) -> Step:
    """Build the train step of an evolution run, which updates a model on drifted fresh images.

    `size` is the number of images of a set. `past` is the number of replayed images, which come
    first in `data.loss_inputs["order"]`. An update has `config.epochs` passes of `per_epoch` steps.

    `data.loss_inputs` has the `rates` [n] of an update's n steps, and the `strengths` that an
    update adds. Its `order` is that in which rows of `data.split` are learned. Rows are drawn,
    poisoned and drifted by their places in that order.
    """
    per_update = config.epochs * per_epoch
    rate = _rate_of(per_update)

    def report_rate(before: TrainState, after: TrainState, reported: Reported, data: TrainData):
        return after, reported | {"lr": rate(before.step, data)}

    return make_train_step(
        update_optimizer(config, per_update),
        loss=classification_loss(model, train=config.learn != "parameters"),
        batches=evolution_batches(attack, config, info, size=size, past=past, per_epoch=per_epoch),
        begin=start_of_update(per_update),
        advance=report_rate,
    )


def evolution_batches(
    attack: Attack,
    config: EvolutionConfig,
    info: DataInfo,
    *,
    size: int,
    past: int,
    per_epoch: int,
) -> Batches:
    """Build the function that draws, drifts, poisons and augments an evolution run's batches.

    It draws rows from an update's set and from the replayed one, then drifts, poisons and augments
    them. With `config.trigger_first` it poisons before the drift.
    """
    drift = compose(tuple(config.drift), info.shape[2])
    poison = poison_rows(attack.stamp, attack.relabel)
    augment = make_augment(info, config.augment)
    replayed = round(config.replay * config.batch_size)
    per_update = config.epochs * per_epoch

    def draw(key: jax.Array, step: jax.Array, data: TrainData) -> Batch:
        update = step // per_update
        rows = batch_rows(
            stream(key, "rows"),
            step,
            size=size,
            steps_per_epoch=per_epoch,
            batch_size=config.batch_size,
        )
        rows = shard_batch(past + update * size + rows)
        if replayed:
            rows = rows.at[:replayed].set(
                jax.random.randint(
                    jax.random.fold_in(stream(key, "replay"), step), (replayed,), 0, past
                )
            )
        old = (rows < past)[:, None, None, None]
        crop = jax.random.fold_in(stream(key, "augment"), step)
        strengths = data.loss_inputs["strengths"] * (update + 1)

        def move(x: Array) -> jax.Array:
            return jnp.where(old, x, drift(drift_keys(key, rows), x, strengths))

        mine = data.loss_inputs["order"][rows]
        images, labels, poisoned = data.resident()
        batch = Batch(as_float(images[mine]), labels[mine], poisoned[rows])
        if config.trigger_first:
            batch = poison(data.trigger, key, batch)
            return batch._replace(images=augment(crop, move(batch.images)))
        batch = poison(data.trigger, key, batch._replace(images=move(batch.images)))
        return batch._replace(images=augment(crop, batch.images))

    return draw


def start_of_update(per_update: int) -> Begin:
    """Build the function that keeps the parameters at the start of each evolution update.

    They are `start_params` in the carry of the train state. An update has `per_update` steps.
    """

    def begin(state: TrainState, data: TrainData) -> dict[str, Params]:
        starts = state.step % per_update == 0
        params, kept = state.variables.params, state.carry["start_params"]
        return {
            "start_params": jax.tree.map(lambda new, old: jnp.where(starts, new, old), params, kept)
        }

    return begin


def update_optimizer(config: EvolutionConfig, per_update: int) -> optax.GradientTransformation:
    """Build the SGD optimiser of an evolution run, whose learning rates come from the train data.

    It has coupled L2 weight decay, and its rates are `data.loss_inputs["rates"]`. Its momentum
    restarts at each update of `per_update` steps where `config.optimizer_state` is "reset".
    """
    momentum = optax.trace(config.momentum)
    if config.optimizer_state == "reset":
        momentum = restart_every(momentum, per_update)
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(decay, momentum, scale_by_step_rate(_rate_of(per_update)))


def _rate_of(per_update: int) -> Callable[[jax.Array, TrainData], jax.Array]:
    """Build `rate(step, data)`: an evolution run's learning rate at a step's place in an update."""

    def rate(step: jax.Array, data: TrainData) -> jax.Array:
        return data.loss_inputs["rates"][step % per_update]

    return rate


def restarted(state: TrainState, variables: Variables) -> TrainState:
    """Return a train state with other model variables and with the optimiser's momentum at 0."""
    opt_state = jax.tree.map(jnp.zeros_like, state.opt_state)
    return dataclasses.replace(state, variables=variables, opt_state=opt_state)
