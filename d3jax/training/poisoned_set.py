"""A poisoned training set as it is released: images and labels, and nobody says which rows are the attacker's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from ..core.errors import AttackError
from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.types import Attack, Batch, Prepared, Split, check_built
from ..data.batched import batched_map
from .victim import poisoned_rows

CHUNK = 1000


def poisoned_split(
    key: jax.Array, attack: Attack, split: Split, prepared: Prepared | None = None
) -> tuple[Split, Bool[np.ndarray, " N"]]:
    """`split` with the rows that `attack` poisons under `key` (those of `train_backdoored`), and which they are [N] bool.

    A triggered image is rounded to 8-bit levels, as a file would hold it. Cross copies (WaNet's, BPP's) are no part of it: who
    makes them controls the training. Raises `AttackError` for an attack that controls the
    training, which is the defender's here: its poison is drawn anew in every batch, or its trigger trained with the model.
    """
    check_built(attack=attack)
    check_released(attack)
    flags = np.asarray(poisoned_rows(key, attack, split.labels))
    images, labels = np.array(split.images), np.array(split.labels)
    rows = np.flatnonzero(flags)
    if prepared and prepared.images is not None:
        images[rows] = np.asarray(prepared.images)
    trigger = prepared.trigger if prepared else attack.init(stream(key, "trigger"))
    draws = stream(key, "released")

    def poisoned(images: np.ndarray, labels: np.ndarray, places: np.ndarray) -> Split:
        batch = Batch(
            as_float(jnp.asarray(images)), jnp.asarray(labels), jnp.ones(len(labels), bool)
        )
        made = attack.poison(trigger, jax.random.fold_in(draws, places[0]), batch)
        return Split(as_levels(made.images), made.labels)

    made = batched_map(poisoned, images[rows], labels[rows], np.arange(len(rows)), batch_size=CHUNK)
    images[rows], labels[rows] = made
    return Split(images, labels), flags


def check_released(attack: Attack) -> None:
    """Raises `AttackError` where an attack has no poisoned set that could be released."""
    if attack.per_batch_rate is not None or attack.optimizer is not None:
        raise AttackError(
            "has no poisoned set that could be released: it controls the training, drawing its poison anew in every batch; "
            "wanet and bpp have fixed rows as a setting (`rows: fixed`)"
        )
