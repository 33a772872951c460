"""The poisoned training set, images and labels, that an attacker releases to defenders.

A defender gets the set without the mask of poisoned rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from ..core.checks import check_built
from ..core.errors import AttackError
from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.types import Attack, Batch, Prepared, Split
from ..data.batched import batched_map
from .victim import cover_rows, poisoned_rows

CHUNK = 1000


def poisoned_split(
    key: jax.Array, attack: Attack, split: Split, prepared: Prepared | None = None
) -> tuple[Split, Bool[np.ndarray, " N"]]:
    """Poison a training set by an attack; return the new set and the mask [N] of poisoned images.

    The poisoned rows are those that `train_backdoored` poisons under the same `key`. A triggered
    image is rounded to 8-bit levels, as a file would hold it. Cover images carry their trigger and
    are not in the mask. The set has no cross copies (WaNet's and BPP's), because only an attacker
    who controls the training can make them.

    Raises `AttackError` for an attack that controls the training, which the defender does here:
    it draws its poison again in every batch, trains its trigger with the model, or changes the
    loss.
    """
    check_built(attack=attack)
    check_released(attack)
    flags = np.asarray(poisoned_rows(key, attack, split.labels))
    covers = cover_rows(key, attack, split.labels)
    images, labels = np.array(split.images), np.array(split.labels)
    if prepared and prepared.images is not None:
        images[flags] = np.asarray(prepared.images)
    rows = np.flatnonzero(flags if covers is None else flags | np.asarray(covers))
    trigger = prepared.trigger if prepared else attack.init(stream(key, "trigger"))
    draws = stream(key, "released")

    def poisoned(
        images: np.ndarray, labels: np.ndarray, places: np.ndarray, numbers: np.ndarray
    ) -> Split:
        batch = Batch(
            as_float(jnp.asarray(images)),
            jnp.asarray(labels),
            jnp.asarray(flags[numbers]),
            rows=jnp.asarray(numbers, jnp.int32),
            covers=None if covers is None else jnp.asarray(covers)[numbers],
        )
        made = attack.poison(trigger, jax.random.fold_in(draws, places[0]), batch)
        return Split(as_levels(made.images), made.labels)

    given = (images[rows], labels[rows], np.arange(len(rows)), rows)
    made = batched_map(poisoned, *given, batch_size=CHUNK)
    images[rows], labels[rows] = made
    return Split(images, labels), flags


def check_released(attack: Attack) -> None:
    """Raise `AttackError` where an attack, as it controls training, can release no poisoned set."""
    if attack.per_batch_rate is not None or attack.optimizer or attack.objective:
        raise AttackError(
            "has no poisoned set that could be released: it controls the training (it draws its "
            "poison in every batch, trains its trigger with the model, or changes the loss); "
            "wanet and bpp can be released with the setting `rows: fixed`"
        )
