"""Evolving models: a model that is updated again and again on fresh data, and how long its backdoor survives.

Li, Bhagoji, Chen, Zheng and Zhao, "On the Permanence of Backdoors in Evolving Models" (arXiv 2206.04677). The paper's text was not
available: the structure of the loop is its abstracts', the details are ours. The first model is trained on poisoned data; every update
continues on a fresh, disjoint set that has drifted further. All updates are one loop, so resume, members and logging are the loop's.
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
    key: jax.Array, model: Model, variables: Variables, replayed: Split | None, fresh: Split, attack: Attack, trigger: Any,
    config: EvolutionConfig, info: DataInfo,
) -> TrainLoop:  # fmt: skip
    """The loop of all updates of `variables`.

    `fresh` is cut into `config.updates` equal sets (`divide`); the rows of what they learn stand behind each other in `data.loss_inputs["order"]`,
    after those of the images that are `replayed`: the first set as it was released (`poisoned_split`); None without replay. Without it the
    images are `fresh`'s own, of which members that run together hold one copy. The carry has the `start_params` of the update. Raises
    `ConfigError` where the fresh images do not fill a batch an update, a drift does not suit them, or the attack has not enough rows.
    """
    check_evolution(config, len(fresh.labels), info)
    learned, _ = divide(key, fresh.labels, config, info.num_classes)
    order, size, per_update = learned.ravel(), learned.shape[1], steps_of(config, len(fresh.labels))
    owned = persistent_rows(key, np.asarray(fresh.labels)[order], size, attack, config)
    split, past = Split(*map(jnp.asarray, fresh)), 0
    if config.replay:
        if replayed is None:
            raise TypeError("replay: the poisoned training set is not there")
        past = len(replayed.labels)
        split = Split(
            *(
                jnp.concatenate([jnp.asarray(old), new])
                for old, new in zip(replayed, split, strict=True)
            )
        )
        order = np.concatenate([np.arange(past), past + order])
        owned = np.concatenate([np.zeros(past, bool), owned])  # their trigger is in them already
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
    """What an image's drift draws, by its place in the order of a loop: the same whenever it is learned. `key` is the state's."""
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
    """Build one step of an update: `size` images in a set, before them in `data.loss_inputs["order"]` the `past` ones of the first set.

    `data.loss_inputs` has the `rates` [n] of an update's n steps, the `strengths` that an update adds, and the `order` in which rows of
    `data.split` are learned; by their places there rows are drawn, poisoned and drift.
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
    """Build the source of `evolution_step`'s batches: drawn from an update's set and the replayed one, drifted, poisoned, augmented."""
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
    """Build what keeps the parameters at the start of an update of `per_update` steps in the carry, as `start_params`."""

    def begin(state: TrainState, data: TrainData) -> dict[str, Params]:
        starts = state.step % per_update == 0
        params, kept = state.variables.params, state.carry["start_params"]
        return {
            "start_params": jax.tree.map(lambda new, old: jnp.where(starts, new, old), params, kept)
        }

    return begin


def update_optimizer(config: EvolutionConfig, per_update: int) -> optax.GradientTransformation:
    """Build SGD with coupled L2, whose rates are `data.loss_inputs["rates"]` and whose momentum restarts at each update, or not."""
    momentum = optax.trace(config.momentum)
    if config.optimizer_state == "reset":
        momentum = restart_every(momentum, per_update)
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(decay, momentum, scale_by_step_rate(_rate_of(per_update)))


def _rate_of(per_update: int) -> Callable[[jax.Array, TrainData], jax.Array]:
    """Build `rate(step, data)`: the learning rate of a step by its place in the update."""

    def rate(step: jax.Array, data: TrainData) -> jax.Array:
        return data.loss_inputs["rates"][step % per_update]

    return rate


def restarted(state: TrainState, variables: Variables) -> TrainState:
    """Return the state with other variables, from which the evolution goes on with momentum 0."""
    opt_state = jax.tree.map(jnp.zeros_like, state.opt_state)
    return dataclasses.replace(state, variables=variables, opt_state=opt_state)
