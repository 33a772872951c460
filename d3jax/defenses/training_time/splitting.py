"""Splits of a training set into images that keep their labels and images that lose them, for ASD.

ASD (Gao et al., CVPR 2023, arXiv 2303.12993) splits the set before every epoch by one of three
rules. All rank the images by the symmetric cross-entropy (SCE) of their labels:

- Class-aware split: in every class, the images with the lowest SCE keep their labels.
- Class-agnostic split: a share of all images keeps its labels, those with the lowest SCE.
- Meta-split: the same share, but those whose SCE is lowered least by a short training of a copy of
  the model on all images. The copy learns poisoned images faster than clean ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ...core.errors import refuse
from ...core.types import Split, Variables


def with_seeds(
    key: jax.Array, data: Split, reserved: Split, count: int, num_classes: int
) -> tuple[Split, Bool[np.ndarray, " M"]]:
    """Append `count` reserved images of every class to a training set of N images.

    They are drawn at random. Return the set of M = N + K·count images and a mask of its seeds,
    which are the last rows. Raises `ConfigError` if a class has fewer reserved images.
    """
    labels = np.asarray(reserved.labels)
    for label, there in enumerate(np.bincount(labels, minlength=num_classes)):
        refuse(
            there < count,
            f"seeds: {count} reserved images of every class are wanted, class {label} has {there}",
        )
    order = np.asarray(jax.random.permutation(key, len(labels)))
    rows = np.concatenate([order[labels[order] == label][:count] for label in range(num_classes)])
    images, labels = (
        np.concatenate([np.asarray(own), np.asarray(more)[rows]])
        for own, more in zip(data, reserved, strict=True)
    )
    return Split(images, labels), np.arange(len(labels)) >= len(data.labels)


def lowest_of_each_class(
    ranked: Int[np.ndarray, " N"],
    labels: Int[np.ndarray, " N"],
    seeds: Bool[np.ndarray, " N"],
    count: int,
) -> Bool[np.ndarray, " N"]:
    """Mark the seeds, and the first `count` other rows of every class in a ranking of N images.

    `ranked` are all row numbers, from the lowest score to the highest. A class with fewer other
    rows gives all of them.
    """
    kept, others = seeds.copy(), ranked[~seeds[ranked]]
    for label in np.unique(labels):
        kept[others[labels[others] == label][:count]] = True
    return kept


def lowest_of_all(ranked: Int[np.ndarray, " N"], share: float) -> Bool[np.ndarray, " N"]:
    """Mark the first ⌊share · N⌋ rows in a ranking of N images, whatever their classes."""
    kept = np.zeros(len(ranked), bool)
    kept[ranked[: int(share * len(ranked))]] = True
    return kept


class Pools(NamedTuple):
    """A split of N images, as the rows that an epoch of L images draws from each of its parts.

    `labelled` [L] and `unlabelled` [L] int32 are row numbers. `kept` [N] bool marks the images that
    keep their labels, and `scores` [N] float32 are the scores by which they were chosen. No shape
    depends on the sizes of the parts, so that one compiled step serves all splits.
    """

    labelled: jax.Array
    unlabelled: jax.Array
    kept: jax.Array
    scores: jax.Array


def no_pools(size: int, length: int) -> Pools:
    """Return `Pools` of zeros for `size` images and epochs of `length` images, to be replaced."""
    rows = jnp.zeros(length, jnp.int32)
    return Pools(rows, rows, jnp.zeros(size, bool), jnp.zeros(size, jnp.float32))


def pools_of(
    key: jax.Array, kept: Bool[np.ndarray, " N"], scores: Float[np.ndarray, " N"], length: int
) -> Pools:
    """Return the `Pools` of a split in which each row of a part comes equally often, up to one.

    `key` draws the rows that come once more than the others. Neither part may be empty.
    """
    order = np.asarray(jax.random.permutation(key, len(kept)))
    parts = (np.resize(order[mask[order]], length).astype(np.int32) for mask in (kept, ~kept))
    return Pools(*map(jnp.asarray, (*parts, kept, np.asarray(scores, np.float32))))


Divide = Callable[[int, Variables], Pools]
"""`divide(epoch, variables) -> Pools`: splits the training set before an epoch."""
