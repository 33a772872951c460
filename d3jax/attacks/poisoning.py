"""Which rows an attacker poisons and what labels they get: the part that every attack shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..base import Attack, Batch, DataInfo
from ..config import option
from ..errors import AttackError

Mode = Literal["all_to_one", "all_to_all"]
RateOf = Literal["set", "class"]


def rate_option(default: float = 0.1) -> Any:
    """The `rate` field of an attack's config."""
    return option(default, "poisoned share of the training set", low=0, high=1)


def target_option() -> Any:
    """The `target` field of an attack's config."""
    return option(0, "the class that triggered images shall be taken for", low=0)


def mode_option() -> Any:
    """The `mode` field of a dirty-label attack's config."""
    return option("all_to_one", "all_to_one: every label becomes the target; all_to_all: label + 1 modulo the classes")


def dirty_label(
    config: Any, info: DataInfo, *, init: Callable[[jax.Array], Any], stamp: Callable[[Any, jax.Array], jax.Array]
) -> Attack:
    """An attack that relabels what it stamps: round(rate·N) rows drawn over all classes, the target's own included.

    `config` has `rate`, `target` and `mode`. Raises `AttackError` when the target is not a class.
    """
    check_target(config.target, info)

    def select(key: jax.Array, labels: jax.Array) -> jax.Array:
        return _draw(key, np.ones(len(labels), bool), round(config.rate * len(labels)))

    def relabel(labels: jax.Array) -> jax.Array:
        if config.mode == "all_to_all":
            return (labels + 1) % info.num_classes
        return jnp.full_like(labels, config.target)

    return Attack(init, stamp, select, relabel, poison_rows(stamp, relabel))


def clean_label(
    config: Any, info: DataInfo, *, init: Callable[[jax.Array], Any], stamp: Callable[[Any, jax.Array], jax.Array]
) -> Attack:
    """An attack that stamps images of the target class and leaves their labels right.

    `config` has `rate`, `rate_of` ("set": a share of the whole training set, as the field counts; "class": of the target
    class) and `target`. Raises `AttackError` when the target is not a class or has too few images.
    """
    check_target(config.target, info)

    def select(key: jax.Array, labels: jax.Array) -> jax.Array:
        candidates = np.asarray(labels) == config.target
        available = int(candidates.sum())
        count = round(config.rate * (len(labels) if config.rate_of == "set" else available))
        if count > available:
            raise AttackError(
                f"rate {config.rate:g} of the training set asks for {count} images of the target class "
                f"{info.classes[config.target]!r}, which has {available}: lower `rate` to {available / len(labels):.4g} "
                "or less, or count it with `rate_of: class`"
            )
        return _draw(key, candidates, count)

    def relabel(labels: jax.Array) -> jax.Array:
        return jnp.full_like(labels, config.target)

    return Attack(init, stamp, select, relabel, poison_rows(stamp, relabel))


def poison_rows(stamp: Callable, relabel: Callable) -> Callable[[Any, jax.Array, Batch], Batch]:
    """The usual `Attack.poison`: the attacker's rows are stamped and relabelled, the others pass unchanged."""

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        own = batch.poisoned[:, None, None, None]
        images = jnp.where(own, stamp(trigger, batch.images), batch.images)
        return batch._replace(images=images, labels=jnp.where(batch.poisoned, relabel(batch.labels), batch.labels))

    return poison


def check_target(target: int, info: DataInfo) -> None:
    """Raises `AttackError` unless `target` is one of the data set's classes."""
    if not 0 <= target < info.num_classes:
        raise AttackError(f"target: {target} is not a class of {info.name}, want 0 to {info.num_classes - 1}")


def _draw(key: jax.Array, candidates: np.ndarray, count: int) -> jax.Array:
    """A mask of `count` rows drawn without replacement from the candidates."""
    rows = jax.random.permutation(key, np.flatnonzero(candidates))[:count]
    return jnp.zeros(len(candidates), bool).at[rows].set(True)
