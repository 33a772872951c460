"""Which rows an attacker poisons and what labels they get: the part that every attack shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.fields import option
from ..core.errors import AttackError
from ..core.types import Array, Attack, Batch, DataInfo, Preparation

Mode = Literal["all_to_one", "all_to_all"]
RateOf = Literal["set", "class"]
Rows = Literal["fixed", "batch"]
Cross = Callable[[Any, jax.Array, Array, Array], Array]
"""`cross(trigger, key, images, others) -> images`: copies that keep their labels, so that only the exact trigger counts; `others`
are as many other images of the batch."""


def rate_option(default: float = 0.1) -> Any:
    """The `rate` field of an attack's config."""
    return option(default, "poisoned share of the training set", low=0, high=1)


def target_option() -> Any:
    """The `target` field of an attack's config."""
    return option(0, "the class that triggered images shall be taken for, by number or name", low=0)


def mode_option() -> Any:
    """The `mode` field of a dirty-label attack's config."""
    return option(
        "all_to_one",
        "all_to_one: every label becomes the target; all_to_all: label + 1 modulo the classes",
    )


def rows_option() -> Any:
    """The `rows` field of an attack that controls the training."""
    return option(
        "batch",
        "batch: the first ⌊rate·B⌋ rows of every shuffled batch, other images each epoch, as the recipes have it; fixed: "
        "round(rate·N) images that stay the same, as when only the data are the attacker's",
    )


def cross_option(default: float) -> Any:
    """The `cross_ratio` field of an attack with cross copies."""
    return option(default, "copies that keep their labels for each poisoned image (0: none)", low=0)


def labeller(config: Any, info: DataInfo) -> Callable[[Array], Array]:
    """`Attack.relabel` of a dirty-label attack, by `config.mode` and `config.target`."""

    target = info.class_of(config.target)

    def relabel(labels: Array) -> Array:
        if config.mode == "all_to_all":
            return (labels + 1) % info.num_classes
        return jnp.full_like(labels, target)

    return relabel


def dirty_label(
    config: Any,
    info: DataInfo,
    *,
    init: Callable[[jax.Array], Any],
    stamp: Callable[[Any, Array], Array],
    poison: Callable[[Any, jax.Array, Batch], Batch] | None = None,
    preparation: Preparation | None = None,
    optimizer: optax.GradientTransformation | None = None,
    per_batch_rate: float | None = None,
) -> Attack:
    """An attack that relabels what it stamps: round(rate·N) rows drawn over all classes, the target's own included.

    `config` has `rate`, `target` and `mode`. Without a `poison` of its own the attack stamps its rows. Raises `ConfigError` when
    the target is not a class; `select` raises `AttackError` when no image is poisoned.
    """
    relabel = labeller(config, info)

    def select(key: jax.Array, labels: Array) -> jax.Array:
        count = round(config.rate * len(labels))
        check_count(count, config.rate, len(labels), "training images")
        none = per_batch_rate is not None  # rows are drawn in each batch
        return _draw(key, np.ones(len(labels), bool), 0 if none else count)

    poison = poison or poison_rows(stamp, relabel)
    return Attack(init, stamp, select, relabel, poison, preparation, optimizer, per_batch_rate)


def crossed(
    config: Any,
    info: DataInfo,
    *,
    init: Callable[[jax.Array], Any],
    stamp: Callable[[Any, Array], Array],
    cross: Cross,
) -> Attack:
    """A dirty-label attack that also shows the training crossed images; `config` has `rows` and `cross_ratio` too."""
    by_position = config.rows == "batch"
    make = _poison_first if by_position else _poison_and_cross
    poison = make(config, stamp, labeller(config, info), cross)
    return dirty_label(
        config,
        info,
        init=init,
        stamp=stamp,
        poison=poison,
        per_batch_rate=config.rate if by_position else None,
    )


def clean_label(
    config: Any,
    info: DataInfo,
    *,
    init: Callable[[jax.Array], Any],
    stamp: Callable[[Any, Array], Array],
    preparation: Preparation | None = None,
) -> Attack:
    """An attack that stamps images of the target class and leaves their labels right.

    `config` has `rate`, `rate_of` ("set": a share of the whole training set, as the field counts; "class": of the target
    class) and `target`. Raises `ConfigError` when the target is not a class; `select` raises `AttackError` when it has too few images,
    or none is poisoned.
    """
    target = info.class_of(config.target)

    def select(key: jax.Array, labels: Array) -> jax.Array:
        candidates = np.asarray(labels) == target
        available = int(candidates.sum())
        among = len(labels) if config.rate_of == "set" else available
        count = round(config.rate * among)
        what = "training images" if config.rate_of == "set" else "images of the target class"
        check_count(count, config.rate, among, what)
        if count > available:
            raise AttackError(
                f"rate {config.rate:g} of the training set asks for {count} images of the target class "
                f"{info.classes[target]!r}, which has {available}: lower `rate` to {available / len(labels):.4g} "
                "or less, or count it with `rate_of: class`"
            )
        return _draw(key, candidates, count)

    def relabel(labels: Array) -> jax.Array:
        return jnp.full_like(labels, target)

    def eligible(labels: Array) -> Array:
        return labels == target

    return Attack(
        init, stamp, select, relabel, poison_rows(stamp, relabel), preparation, eligible=eligible
    )


def poisoned_share(attack: Attack, selected: Array, batch_size: int) -> float:
    """The share of what a training sees that the attacker poisons: of the rows `selected` [N], or of each batch."""
    if attack.per_batch_rate is None:
        return int(selected.sum()) / len(selected)
    wanted = attack.per_batch_rate * batch_size
    return (int(wanted) if wanted >= 1 else wanted) / batch_size


def poison_rows(stamp: Callable, relabel: Callable) -> Callable[[Any, jax.Array, Batch], Batch]:
    """The usual `Attack.poison`: the attacker's rows are stamped and relabelled, the others pass unchanged."""

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        own = batch.poisoned[:, None, None, None]
        images = jnp.where(own, stamp(trigger, batch.images), batch.images)
        return batch._replace(
            images=images, labels=jnp.where(batch.poisoned, relabel(batch.labels), batch.labels)
        )

    return poison


def heads(
    batch: Batch, rate: float, cross_ratio: float, key: jax.Array
) -> tuple[int, int, jax.Array]:
    """(n, m, [n] bool): the first n rows of a batch of B are the attacker's where the mask says so, the m behind them are crossed.

    n is ⌊rate·B⌋; where rate·B < 1 it is one row, the attacker's with that probability. m is ⌊n · cross_ratio⌋.
    """
    size = len(batch.labels)
    wanted = rate * size
    n = min(math.ceil(wanted), 1) if wanted < 1 else int(wanted)
    own = jnp.ones(n, bool) if wanted >= 1 else jax.random.uniform(key, (n,)) < wanted
    return n, min(int(n * cross_ratio), size - n), own


def put_first(
    batch: Batch, own: jax.Array, stamped: Array, crosses: Array, relabel: Callable
) -> Batch:
    """The batch with the `stamped` images [n, …] in its first rows, as far as they are `own` [n], and the `crosses` behind them."""
    n, m = len(stamped), len(crosses)
    images = jnp.where(own[:, None, None, None], stamped, batch.images[:n])
    labels = jnp.where(own, relabel(batch.labels[:n]), batch.labels[:n])
    return batch._replace(
        images=jnp.concatenate([images, crosses, batch.images[n + m :]]),
        labels=jnp.concatenate([labels, batch.labels[n:]]),
        poisoned=jnp.zeros_like(batch.poisoned).at[:n].set(own),
    )


def others(images: Array, first: int, count: int) -> jax.Array:
    """`count` images of the batch from row `first` on, round its end."""
    return jnp.take(images, jnp.arange(first, first + count) % len(images), axis=0)


def _poison_first(
    config: Any, stamp: Callable, relabel: Callable, cross: Cross
) -> Callable[[Any, jax.Array, Batch], Batch]:
    """Poisons the first rows of a batch, and crosses those behind them."""

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        coin, noise = jax.random.split(key)
        n, m, own = heads(batch, config.rate, config.cross_ratio, coin)
        images = batch.images
        crosses = cross(trigger, noise, images[n : n + m], others(images, n + m, m))
        return put_first(batch, own, stamp(trigger, images[:n]), crosses, relabel)

    return poison


def _poison_and_cross(
    config: Any, stamp: Callable, relabel: Callable, cross: Cross
) -> Callable[[Any, jax.Array, Batch], Batch]:
    """Poisons the attacker's rows, and crosses others: each with a chance that makes `cross_ratio` for each poisoned one."""
    chance = min(1.0, config.rate * config.cross_ratio / max(1 - config.rate, 1e-9))
    plain = poison_rows(stamp, relabel)

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        coin, noise = jax.random.split(key)
        chosen = (jax.random.uniform(coin, batch.labels.shape) < chance) & ~batch.poisoned
        crosses = cross(trigger, noise, batch.images, others(batch.images, 1, len(batch.labels)))
        poisoned = plain(trigger, key, batch)
        return poisoned._replace(
            images=jnp.where(chosen[:, None, None, None], crosses, poisoned.images)
        )

    return poison


def check_count(count: int, rate: float, among: int, what: str) -> None:
    """Raises `AttackError` where a rate of so many images is none."""
    if not count:
        least = f", want at least {1 / among:.2g}" if among else ""
        raise AttackError(
            f"rate: {rate:g} of {among} {what} is none{least}; the attack clean is the control without a backdoor"
        )


def _draw(key: jax.Array, candidates: np.ndarray, count: int) -> jax.Array:
    """A mask of `count` rows drawn without replacement from the candidates."""
    rows = jax.random.permutation(key, np.flatnonzero(candidates))[:count]
    return jnp.zeros(len(candidates), bool).at[rows].set(True)
