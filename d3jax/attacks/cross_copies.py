"""Poison that an attacker puts into each batch: triggered images first, then cross copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..config.fields import option
from ..core.types import Array, Attack, Batch, DataInfo
from .poisoning import dirty_label, labeller, poison_rows

Rows = Literal["fixed", "batch"]
Cross = Callable[[Any, jax.Array, Array, Array], Array]
"""`cross(trigger, key, images, others) -> images` makes cross copies, which keep their labels.

A model that is trained on them reacts only to the exact trigger. `others` are as many other images
of the batch.
"""


def cross_option(default: float) -> Any:
    """Declare an attack's config field `cross_ratio`: cross copies per poisoned image."""
    return option(
        default, "cross copies, which keep their labels, for each poisoned image (0: none)", low=0
    )


def rows_option() -> Any:
    """Declare the config field `rows` of an attack: poison a fixed set, or rows of each batch."""
    return option(
        "batch",
        "batch: the first ⌊rate·B⌋ rows of every shuffled batch, so other images each epoch, as in "
        "the published recipes; fixed: the same round(rate·N) images in every epoch, as when the "
        "attacker controls only the data",
    )


def crossed(
    config: Any,
    info: DataInfo,
    *,
    init: Callable[[jax.Array], Any],
    stamp: Callable[[Any, Array], Array],
    cross: Cross,
) -> Attack:
    """Return a dirty-label `Attack` that also puts cross copies into the training batches.

    Cross copies are changed images that keep their labels. `config` also has `rows` and
    `cross_ratio`. `cross` makes the copies, see `Cross`.
    """
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


def heads(
    batch: Batch, rate: float, cross_ratio: float, key: jax.Array
) -> tuple[int, int, jax.Array]:
    """Return how many rows of a batch to poison (n) and to cross-copy (m), and a mask [n] bool.

    The first n of the B rows are poisoned where the mask is true. The m rows after them are
    crossed. n is ⌊rate·B⌋. Where rate·B < 1, n is one row, which is poisoned with that probability.
    m is ⌊n · cross_ratio⌋, but at most B − n, and does not depend on the mask. So where rate·B < 1
    there are more than `cross_ratio` copies for each poisoned image.
    """
    size = len(batch.labels)
    wanted = rate * size
    n = min(math.ceil(wanted), 1) if wanted < 1 else int(wanted)
    own = jnp.ones(n, bool) if wanted >= 1 else jax.random.uniform(key, (n,)) < wanted
    return n, min(int(n * cross_ratio), size - n), own


def put_first(
    batch: Batch, own: jax.Array, stamped: Array, crosses: Array, relabel: Callable
) -> Batch:
    """Return a `Batch` with stamped images in its first rows and cross copies in the next rows.

    The `stamped` images [n, …] replace the first rows where `own` [n] is true, and these rows are
    relabelled. The `crosses` replace the rows after them, which keep their labels.
    """
    n, m = len(stamped), len(crosses)
    images = jnp.where(own[:, None, None, None], stamped, batch.images[:n])
    labels = jnp.where(own, relabel(batch.labels[:n]), batch.labels[:n])
    return batch._replace(
        images=jnp.concatenate([images, crosses, batch.images[n + m :]]),
        labels=jnp.concatenate([labels, batch.labels[n:]]),
        poisoned=jnp.zeros_like(batch.poisoned).at[:n].set(own),
    )


def others(images: Array, first: int, count: int) -> jax.Array:
    """Return `count` images of a batch from row `first` on, continuing at row 0 after the end."""
    return jnp.take(images, jnp.arange(first, first + count) % len(images), axis=0)


def _poison_first(
    config: Any, stamp: Callable, relabel: Callable, cross: Cross
) -> Callable[[Any, jax.Array, Batch], Batch]:
    """Return an `Attack.poison` that poisons a batch's first rows and cross-copies the next."""

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
    """Return an `Attack.poison` that poisons the selected rows and cross-copies some others.

    Each other row is crossed with a chance that gives on average `cross_ratio` copies for each
    poisoned row.
    """
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
