"""Which device computes what: a mesh of ("member", "data"), the placement of arrays on it, and the processes behind it.

Members are loops of one program that share no numbers; the data axis splits every batch. XLA puts the sums in between. Where
several processes share the devices (a TPU pod, several GPU hosts), all of them run the same study in step; each has the whole
data set, the first alone writes tables, and what to do next is what the first one sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.types import Device

MEMBERS = P("member")
"""Split over members, each on its share of the devices."""
BATCHES = P(None, "data")
"""Batches of several steps: each split over the data axis."""
COPIES = P()
"""A whole copy on every device."""


def make_mesh(members: int, devices: Sequence[Device]) -> Mesh | None:
    """A mesh over `devices`, as many rows as divide both them and the members; None for a single device."""
    if len(devices) < 2:
        return None
    rows = math.gcd(members, len(devices))
    shape = (rows, len(devices) // rows)
    # Auto, not Explicit: the compiler finds the shardings in between, as ordinary data-parallel code expects.
    return jax.make_mesh(
        shape, ("member", "data"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices
    )


def shard_batch(tree: Any) -> Any:
    """Inside a program: splits the leading axis of every array over the mesh's data axis, as far as `shares` says."""

    def split(x):
        return jax.lax.with_sharding_constraint(x, P("data")) if shares(x.shape[0]) > 1 else x

    return jax.tree.map(split, tree)


def shares(rows: int) -> int:
    """Inside a program: over how many devices a batch of so many rows is split.

    Without a mesh, or where its data axis does not divide the rows, every device computes all of them: the same numbers, no gain.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if mesh.empty else mesh.shape["data"]
    return 1 if rows % size else size


def device_put_global(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Every array of `tree` on the mesh, laid out as `spec`. Each process must hold the same values."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_on_every_process(leaf, sharding), tree)


def _put_on_every_process(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put_on_every_process(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def local(tree: Any) -> Any:
    """This process's copy of arrays that every device holds whole."""

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        return leaf.addressable_data(0)

    return jax.tree.map(one, tree)


def copies(tree: Any) -> Any:
    """Arrays that every process holds alike, as arrays of all of them, the form in which several processes save together."""
    if jax.process_count() == 1:
        return tree
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return device_put_global(tree, mesh, COPIES)
