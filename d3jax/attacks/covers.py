"""Cover images: training images with a trigger that keep their true labels.

They stop the model from sending every partly triggered image to the target class. Poisoned and
clean images then differ less in their features (Qi et al. 2023, openreview _wSHsgrVali).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import option
from ..core.types import Array, Attack, Batch
from .poisoning import check_count, draw

PerImage = Callable[[Any, Array, Array], jax.Array]
"""`stamp(trigger, rows, images) -> images` stamps training images by their row numbers [B]."""


def cover_option(default: float) -> Any:
    """Declare the config field `cover_rate` of an attack: the share of cover images."""
    return option(
        default, "share of the training set that gets a trigger and keeps its labels", low=0, high=1
    )


def with_covers(
    attack: Attack,
    rate: float,
    stamp: PerImage,
    may: Callable[[np.ndarray], np.ndarray] = lambda labels: np.ones(len(labels), bool),
) -> Attack:
    """Return an `Attack` whose training images are stamped one by one, and which has cover images.

    `stamp` stamps the poisoned rows and the cover rows. The latter are round(`rate` · N) rows that
    are not poisoned and whose labels `may(labels) -> bool [N]` allows. `Attack.covers` raises
    `AttackError` where there are too few of them, or where `rate` amounts to none.
    """

    def choose(key: jax.Array, labels: Array) -> jax.Array:
        labels = np.asarray(labels)
        free = may(labels) & ~np.asarray(attack.select(key, labels))
        count = round(rate * len(labels))
        check_count(count, rate, len(labels), "training images", "cover_rate", int(free.sum()))
        return draw(jax.random.fold_in(key, 1), free, count)

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        if batch.rows is None or (rate and batch.covers is None):
            raise ValueError("batch: an attack with cover images needs its rows and covers")
        changed = batch.poisoned if batch.covers is None else batch.poisoned | batch.covers
        stamped = stamp(trigger, batch.rows, batch.images)
        images = jnp.where(changed[:, None, None, None], stamped, batch.images)
        labels = jnp.where(batch.poisoned, attack.relabel(batch.labels), batch.labels)
        return batch._replace(images=images, labels=labels)

    return attack._replace(poison=poison, covers=choose if rate else None)


def keys_of_rows(trigger: Any, rows: Array) -> jax.Array:
    """Return one random key for each row number [B], from the key data in `trigger["key"]`.

    Each training image therefore has the same random trigger in every epoch.
    """
    key = jax.random.wrap_key_data(trigger["key"])
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
