"""The sets of fresh images that updates learn and keep, and which of them the attacker poisons."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.errors import ConfigError
from ..core.random import stream
from ..core.types import (
    Attack,
    DataInfo,
)
from ..data.drift import compose, label_shift
from .config import EvolutionConfig
from .lr_schedules import rates


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
    `key` is `evolution_key`'s.
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

    learned_rows, kept_rows = (
        np.stack([shifted(i, p, rows) for i, rows in enumerate(part)])
        for p, part in enumerate(parts)
    )
    return learned_rows, kept_rows


def evolution_key(seed: int) -> jax.Array:
    """Return the key of all that is random in the evolution runs of a seed."""
    return stream(jax.random.key(seed), "lineage")  # the name is part of every result


def check_poison(
    key: jax.Array, labels: Any, attack: Attack, config: EvolutionConfig, num_classes: int
) -> None:
    """Raises `ConfigError` where the evolution run under `key` could not poison its share of the fresh images with `labels`."""
    learned, _ = divide(key, labels, config, num_classes)
    persistent_rows(key, np.asarray(labels)[learned.ravel()], learned.shape[1], attack, config)


def persistent_rows(
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
        able = np.flatnonzero(may[i * size : (i + 1) * size])
        if len(able) < wanted:
            raise ConfigError(
                f"persistent: {config.persistent:g} of {size} images is {wanted}, update {i + 1} has {len(able)} that the attack can take"
            )
        chosen = np.asarray(
            jax.random.permutation(jax.random.fold_in(stream(key, "persistent"), i), able)
        )[:wanted]
        owned[i * size + chosen] = True
    return owned
