"""The mesh of devices with the axes "member" and "data", and the placement of arrays on it.

Members are train loops of one program that share no numbers. The data axis splits every batch, and
XLA inserts the sums over devices. Several processes may share the devices (a TPU pod, several GPU
hosts). All of them then run the same study in step. Each process has the whole data set. Only the
first process writes tables, and its view of the disk decides what is done next.
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
"""Layout of members: each member is on its share of the devices."""
BATCHES = P(None, "data")
"""Layout of stacked batches of several steps: each batch is split over the data axis."""
COPIES = P()
"""Layout of arrays of which every device has a whole copy."""


def make_mesh(members: int, devices: Sequence[Device]) -> Mesh | None:
    """Return a ("member", "data") mesh over JAX devices, or None for fewer than two devices.

    The size of the member axis is the greatest common divisor of the number of members and the
    number of devices.
    """
    if len(devices) < 2:
        return None
    rows = math.gcd(members, len(devices))
    shape = (rows, len(devices) // rows)
    # Auto, not Explicit: the compiler chooses the shardings of intermediate values, as ordinary
    # data-parallel code expects.
    return jax.make_mesh(
        shape, ("member", "data"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices
    )


def shard_batch(tree: Any) -> Any:
    """Split the leading axis of every array of a pytree over the data axis of the device mesh.

    For use inside a compiled program. An array that `shares` does not split stays as it is.
    """

    def split(x):
        return jax.lax.with_sharding_constraint(x, P("data")) if shares(x.shape[0]) > 1 else x

    return jax.tree.map(split, tree)


def shares(rows: int) -> int:
    """Return the number of devices over which a batch of `rows` rows is split.

    For use inside a compiled program. It is 1 without a mesh, or if the size of the data axis does
    not divide `rows`. Then every device computes all rows, with the same results and no gain in
    speed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if mesh.empty else mesh.shape["data"]
    return 1 if rows % size else size


def device_put_global(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Put every array of a pytree on a device mesh in the layout `spec`, from all processes.

    Each process must hold the same values.
    """
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
    """Return the copies that this process holds of the replicated global arrays of a pytree."""

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        return leaf.addressable_data(0)

    return jax.tree.map(one, tree)


def copies(tree: Any) -> Any:
    """Copy the arrays of a pytree that all processes hold alike to every device, as global arrays.

    Several processes need this form to save a checkpoint together. With one process the tree is
    returned as it is.
    """
    if jax.process_count() == 1:
        return tree
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return device_put_global(tree, mesh, COPIES)
