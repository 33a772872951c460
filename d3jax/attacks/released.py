"""The attack `released`: poison that came with a data set, and is known by its examples only."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import AttackError
from ..core.images import as_float, as_levels, hashes_of
from ..core.paths import user_path
from ..core.types import Array, Attack, Batch, DataInfo
from ..data.released import Released, read_released


@dataclasses.dataclass(frozen=True)
class ReleasedConfig:
    """Settings of the attack `released`, for a training set that somebody else poisoned.

    The data set of the study must be the same file. The poison is in its training images already.
    """

    path: str = option(
        dataclasses.MISSING,
        "the .npz with the poisoned set; `d3jax.data.released` lists its arrays",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the attack for the poisoned set that `path` names."""
        return make_released(self, info)


def make_released(config: ReleasedConfig, info: DataInfo) -> Attack:
    """Return the `Attack` of a released set, whose training images are poisoned already.

    `select` returns the array `poisoned` of the file, or no row without it, and `poison` changes
    nothing. `stamp` replaces a test image by its triggered image in the file. It looks up the test
    image by a hash of its 8-bit levels, and leaves other images as they are. Two of 10,000 images
    have the same hash with a chance of about 1 %. The trigger is
    `{"hashes": [n] uint32, "images": [n, H, W, C] uint8}`. Without triggered images, ASR and RA are
    undefined. The arrays `covers` and `original_labels` are not used. Without `poisoned`, the
    number of poisoned images is not known, and is reported as 0.

    Raises `DataError` for an unreadable file, and `AttackError` where the file does not fit the
    data set.
    """
    path = user_path(config.path)
    given = read_released(path)
    _check(str(path), given, info)
    known = given.triggered_images is not None
    own = np.arange(info.num_classes)
    wanted = jnp.asarray(np.asarray(given.wanted_labels) if known else own, jnp.int32)
    table = _table(given, info) if known else {}
    given_labels, poisoned = np.asarray(given.train.labels), given.poisoned

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.asarray(array) for name, array in table.items()}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        if not known:
            return jnp.asarray(images)
        hashes = hashes_of(as_levels(images))
        places = jnp.searchsorted(trigger["hashes"], hashes)
        places = jnp.minimum(places, len(trigger["hashes"]) - 1)
        found = (trigger["hashes"][places] == hashes)[:, None, None, None]
        return jnp.where(found, as_float(trigger["images"][places]), images)

    def select(key: jax.Array, labels: Array) -> jax.Array:
        if len(labels) != len(given_labels):
            raise AttackError(
                f"path: {path} has {len(given_labels)} training images, the data set of the "
                f"study has {len(labels)}; it must be the same file"
            )
        if differing := int((np.asarray(labels) != given_labels).sum()):
            raise AttackError(
                f"path: {path} has another label than the data set of the study for {differing} "
                f"of {len(labels)} training images; it must be the same file"
            )
        return jnp.asarray(np.zeros(len(labels), bool) if poisoned is None else poisoned)

    def relabel(labels: Array) -> jax.Array:
        return wanted[labels]

    def eligible(labels: Array) -> jax.Array:
        if not known:
            return jnp.zeros(len(labels), bool)
        return jnp.ones(len(labels), bool)

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        return batch

    return Attack(init, stamp, select, relabel, poison, eligible=eligible, copies_only=True)


def _table(given: Released, info: DataInfo) -> dict[str, np.ndarray]:
    """Return the trigger: triggered images, sorted by the hashes of the images they are made of."""
    clean = np.asarray(given.test.images)[np.asarray(given.triggered_rows)]
    hashes = np.concatenate(
        [np.asarray(hashes_of(part)) for part in np.array_split(clean, 16) if len(part)]
    )
    order = np.argsort(hashes, kind="stable")
    images = np.reshape(np.asarray(given.triggered_images), (len(hashes), *info.shape))
    return {"hashes": hashes[order], "images": images[order]}


def _check(source: str, given: Released, info: DataInfo) -> None:
    """Raise `AttackError` where a released set does not fit the data set that `info` describes."""
    shape = given.train.images.shape[1:]
    shape = (*shape, 1) if len(shape) == 2 else shape
    if tuple(shape) != tuple(info.shape):
        raise AttackError(
            f"path: {source} has images of {list(shape)}, {info.name} has {list(info.shape)}"
        )
    wanted = given.wanted_labels
    if wanted is None:
        return
    count = info.num_classes
    if len(wanted) != count or wanted.min() < 0 or wanted.max() >= count:
        raise AttackError(
            f"path: {source}: wanted_labels is {wanted.tolist()}, want {count} classes from 0 to "
            f"{count - 1}"
        )
    labels = np.asarray(given.test.labels)
    attacked = np.flatnonzero(wanted[labels] != labels)
    missing = len(np.setdiff1d(attacked, np.asarray(given.triggered_rows)))
    if missing or not len(attacked):
        raise AttackError(
            f"path: {source}: triggered_images lacks {missing} of the {len(attacked)} test images "
            "whose label the attacker changes; want all of them, and at least one"
        )
