"""The sets of fresh images of an evolution run: which are learned, held out or poisoned."""

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
    """Check an evolution run's settings; return how many of `count` fresh images an update learns.

    Raises `ConfigError` where these do not fill a batch, or where another setting does not suit the
    images or the number of updates.
    """
    compose(tuple(config.drift), info.shape[2])
    for name in {"brightness", "contrast"} & set(config.drift):
        if (last := config.updates * config.drift[name]) <= -1:
            raise ConfigError(
                f"drift: {name}: {config.drift[name]:g} in each of {config.updates} updates "
                f"ends at {last:g}, want above -1"
            )
    if config.replay and not round(config.replay * config.batch_size):
        raise ConfigError(
            f"replay: {config.replay:g} of the {config.batch_size} images of a batch "
            "is less than one"
        )
    if config.defense and config.every > config.updates:
        raise ConfigError(
            f"every: {config.every} is more than the {config.updates} updates; "
            f"{config.defense} would never be called"
        )
    update_rates(config, steps_of(config, count))
    return _sizes(config, count)[0]


def update_rates(config: EvolutionConfig, steps: int) -> np.ndarray:
    """Return the learning rates [steps] of the train steps of one update of an evolution run.

    The rates are 0 where only BatchNorm's statistics change.
    """
    return rates(config.strategy, steps) * (config.learn != "statistics")


def steps_of(config: EvolutionConfig, count: int) -> int:
    """Return the number of train steps of one update of an evolution run on `count` fresh images.

    An update gets its share of these.

    Raises `ConfigError` where its share is less than a batch.
    """
    learned, _ = _sizes(config, count)
    if learned < config.batch_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is more than the {learned} images "
            f"that one of {config.updates} updates learns"
        )
    return config.epochs * (learned // config.batch_size)


def _sizes(config: EvolutionConfig, count: int) -> tuple[int, int]:
    """Return the numbers of fresh images that an evolution update learns and that it holds out."""
    size = count // config.updates
    kept = round(config.validation * size)
    return size - kept, kept


def divide(
    key: jax.Array, labels: Any, config: EvolutionConfig, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide fresh images among an evolution run's updates: rows to learn and rows to hold out.

    Returns rows to learn [updates, n] and rows to hold out [updates, m]. The sets are rows of the
    fresh images. `labels` are those of the fresh images. The sets of different updates are
    disjoint. Their labels are shifted by resampling, so a shifted set holds some images twice.
    `key` is that of `evolution_key`.
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
    """Return the random key from which the evolution runs of an integer seed draw everything."""
    return stream(jax.random.key(seed), "lineage")  # another name would change every result


def check_poison(
    key: jax.Array, labels: Any, attack: Attack, config: EvolutionConfig, num_classes: int
) -> None:
    """Raise `ConfigError` where an evolution run cannot poison its share of the fresh images.

    `key` is the key of the run, and `labels` are those of the fresh images.
    """
    learned, _ = divide(key, labels, config, num_classes)
    persistent_rows(key, np.asarray(labels)[learned.ravel()], learned.shape[1], attack, config)


def persistent_rows(
    key: jax.Array, labels: np.ndarray, size: int, attack: Attack, config: EvolutionConfig
) -> np.ndarray:
    """Return which fresh images of an evolution run the attacker poisons, as a boolean mask [N].

    `labels` [N] are arranged set after set, with `size` images in each. For one-shot poisoning no
    row is poisoned. Otherwise in every set the same number is drawn from the images that the attack
    may poison. Raises `ConfigError` where this number is 0, or where a set has fewer such images.
    """
    owned, may = np.zeros(len(labels), bool), np.asarray(attack.eligible(jnp.asarray(labels)))
    if not config.persistent or not may.any():  # one-shot poisoning, or no attack
        return owned
    wanted = round(config.persistent * size)
    if not wanted:
        raise ConfigError(
            f"persistent: {config.persistent:g} of the {size} images that an update learns "
            "is less than one"
        )
    for i in range(config.updates):
        able = np.flatnonzero(may[i * size : (i + 1) * size])
        if len(able) < wanted:
            raise ConfigError(
                f"persistent: {config.persistent:g} of {size} images is {wanted}, "
                f"update {i + 1} has {len(able)} that the attack can take"
            )
        chosen = np.asarray(
            jax.random.permutation(jax.random.fold_in(stream(key, "persistent"), i), able)
        )[:wanted]
        owned[i * size + chosen] = True
    return owned
