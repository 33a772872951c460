"""Evolving models: a model that is updated again and again on fresh data, and how long its backdoor survives.

Li, Bhagoji, Chen, Zheng and Zhao, "On the Permanence of Backdoors in Evolving Models" (arXiv 2206.04677). The paper's text was not
available: the structure of the loop is its abstracts', the details are ours. The first model is trained on poisoned data; every update
continues on a fresh, disjoint set that has drifted further. All updates are one loop, so resume, members and logging are the loop's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..attacks.poisoning import poison_rows
from ..config.fields import check_fields, option
from ..core.errors import ConfigError
from ..core.images import as_float
from ..core.random import stream
from ..core.types import (
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
from ..data.drift import check_kinds, compose, keys_of, label_shift
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
from .lr_schedules import LRScheduleConfig, rates


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """How a model evolves.

    `drift` maps a kind of drift to the strength that each update adds; `label_shift` adds to the exponent of the class weights. Fresh images are poisoned by the trigger that the attacker
    has at test time: LC's without its perturbation.
    """

    updates: int = option(10, "updates, each on a fresh set", low=1)
    validation: float = option(
        0.1,
        "share of every fresh set that is not learned: clean images to choose rates by",
        low=0,
        high=0.5,
    )
    epochs: int = option(10, "passes over the fresh set in an update", low=1)
    batch_size: int = option(128, "images a step; the last short batch of a pass is dropped", low=1)
    strategy: LRScheduleConfig = option(
        LRScheduleConfig, "learning rates within an update, restarted at each"
    )
    drift: dict[str, float] = option(
        dict,
        "strength that each update adds: rotation (degrees), hue (turns), brightness and contrast (factor less 1), noise (standard deviation "
        "of values in [0, 1]), blur (pixels)",
    )
    label_shift: float = option(0.0, "what each update adds to the exponent of the class weights")
    trigger_first: bool = option(False, "the trigger is pasted before the drift, not after it")
    persistent: float = option(
        0.0, "share of every fresh set that is poisoned (0: one-shot)", low=0, high=1
    )
    replay: float = option(
        0.0, "share of every batch that comes from the first set, poison and all", low=0, high=1
    )
    optimizer_state: Literal["reset", "carried"] = option(
        "reset", "momentum at the start of an update"
    )
    learn: Literal["all", "statistics", "parameters"] = option(
        "all",
        "statistics: only BatchNorm's running ones move; parameters: all else does, and these normalise",
    )
    augment: Literal["auto", "none"] = option(
        "auto", "auto: the crop and flip that the data set allows"
    )
    momentum: float = option(0.9, "SGD momentum", low=0, high=1)
    weight_decay: float = option(5e-4, "coupled L2", low=0)
    defense: str | None = option(
        None, "label of the entry of `defenses` that is called after updates (null: none)"
    )
    every: int = option(1, "updates from one call of the defence to the next", low=1)
    calls: int = option(0, "how often it is called (0: to the end)", low=0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_kinds(self.drift)
        for kind in {"noise", "blur"} & set(self.drift):
            if self.drift[kind] < 0:
                raise ConfigError(f"drift: {kind}: {self.drift[kind]:g} is out of range, want ≥ 0")
        for name in ("every", "calls"):
            if not self.defense and getattr(self, name) != getattr(EvolutionConfig, name):
                raise ConfigError(
                    f"{name}: {getattr(self, name)} says how often a defence is called, and there is no defense"
                )

    @property
    def program(self) -> tuple[Any, ...]:
        """What of it is part of the compiled program: lineages that agree in it can run as members of one."""
        static = (
            self.updates,
            self.validation,
            self.epochs,
            self.batch_size,
            tuple(self.drift),
            self.trigger_first,
            self.replay,
        )
        return (
            *static,
            self.optimizer_state,
            self.learn == "parameters",
            self.augment,
            self.momentum,
            self.weight_decay,
        )


EVOLUTIONS = {"evolution": EvolutionConfig}
"""`EVOLUTIONS[name] = config class`."""


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
    owned = _persistent(key, np.asarray(fresh.labels)[order], size, attack, config)
    split, past = Split(*map(jnp.asarray, fresh)), 0
    if config.replay:
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


def check_evolution(config: EvolutionConfig, count: int, info: DataInfo) -> int:
    """How many of `count` fresh images an update learns. Raises `ConfigError` where they do not fill a batch, or something else does
    not suit the images or the updates."""
    compose(tuple(config.drift), info.shape[2])
    for name in {"brightness", "contrast"} & set(config.drift):
        if (last := config.updates * config.drift[name]) <= -1:
            raise ConfigError(
                f"drift: {name}: {config.drift[name]:g} in each of {config.updates} updates ends at {last:g}, want above -1"
            )
    if config.replay and not round(config.replay * config.batch_size):
        raise ConfigError(
            f"replay: {config.replay:g} of the {config.batch_size} images of a batch is less than one"
        )
    if config.defense and config.every > config.updates:
        raise ConfigError(
            f"every: {config.every} is more than the {config.updates} updates; {config.defense} would never be called"
        )
    update_rates(config, steps_of(config, count))
    return _sizes(config, count)[0]


def update_rates(config: EvolutionConfig, steps: int) -> np.ndarray:
    """The learning rate of every step of an update, [steps]; 0 where only statistics move."""
    return rates(config.strategy, steps) * (config.learn != "statistics")


def steps_of(config: EvolutionConfig, count: int) -> int:
    """Steps in an update that has its share of `count` fresh images. Raises `ConfigError` where it has less than a batch."""
    learned, _ = _sizes(config, count)
    if learned < config.batch_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is more than the {learned} images that one of {config.updates} updates learns"
        )
    return config.epochs * (learned // config.batch_size)


def _sizes(config: EvolutionConfig, count: int) -> tuple[int, int]:
    """How many fresh images of an update are learned, and how many kept for validation."""
    size = count // config.updates
    kept = round(config.validation * size)
    return size - kept, kept


def divide(
    key: jax.Array, labels: Any, config: EvolutionConfig, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the fresh images with `labels` each update learns, [updates, n], and which it keeps for validation, [updates, m].

    The sets of the updates are disjoint; their labels are shifted by resampling, so that a shifted set holds some images twice.
    `key` is the lineage's.
    """
    key, labels = stream(key, "fresh"), np.asarray(labels)
    learned, kept = _sizes(config, len(labels))
    order = np.asarray(jax.random.permutation(key, len(labels)))[
        : (learned + kept) * config.updates
    ]
    parts = np.split(order.reshape(config.updates, learned + kept), [learned], axis=1)

    def shifted(update: int, part: int, rows: np.ndarray) -> np.ndarray:
        draw = jax.random.fold_in(jax.random.fold_in(key, update), part)
        strength = config.label_shift * (update + 1)
        return (
            rows[label_shift(draw, jnp.asarray(labels[rows]), strength, num_classes)]
            if strength and len(rows)
            else rows
        )

    return tuple(
        np.stack([shifted(i, p, rows) for i, rows in enumerate(part)])
        for p, part in enumerate(parts)
    )


def lineage_key(seed: int) -> jax.Array:
    """What all that is random in the lineages of a seed follows from."""
    return stream(jax.random.key(seed), "lineage")


def check_poison(
    key: jax.Array, labels: Any, attack: Attack, config: EvolutionConfig, num_classes: int
) -> None:
    """Raises `ConfigError` where the lineage under `key` could not poison its share of the fresh images with `labels`."""
    learned, _ = divide(key, labels, config, num_classes)
    _persistent(key, np.asarray(labels)[learned.ravel()], learned.shape[1], attack, config)


def _persistent(
    key: jax.Array, labels: np.ndarray, size: int, attack: Attack, config: EvolutionConfig
) -> np.ndarray:
    """Which of the arranged fresh images [N] the attacker poisons: as many of every set, of those that the attack may take."""
    owned, may = np.zeros(len(labels), bool), np.asarray(attack.eligible(jnp.asarray(labels)))
    if not config.persistent or not may.any():  # one-shot; no attack
        return owned
    wanted = round(config.persistent * size)
    if not wanted:
        raise ConfigError(
            f"persistent: {config.persistent:g} of the {size} images that an update learns is less than one"
        )
    for i in range(config.updates):
        mine = np.flatnonzero(may[i * size : (i + 1) * size])
        if len(mine) < wanted:
            raise ConfigError(
                f"persistent: {config.persistent:g} of {size} images is {wanted}, update {i + 1} has {len(mine)} that the attack can take"
            )
        chosen = np.asarray(
            jax.random.permutation(jax.random.fold_in(stream(key, "persistent"), i), mine)
        )[:wanted]
        owned[i * size + chosen] = True
    return owned


def drift_keys(key: jax.Array, places: jax.Array) -> jax.Array:
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

        def move(x: jax.Array) -> jax.Array:
            return jnp.where(old, x, drift(drift_keys(key, rows), x, strengths))

        mine = data.loss_inputs["order"][rows]
        batch = Batch(
            as_float(data.split.images[mine]), data.split.labels[mine], data.poisoned[rows]
        )
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
