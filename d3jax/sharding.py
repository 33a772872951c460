"""Which device computes what: a mesh of ("member", "data"), the placement of arrays on it, and the processes behind it.

Members are jobs of one program that share no numbers; the data axis splits every batch. XLA puts the sums in between. Where
several processes share the devices (a TPU pod, several GPU hosts), all of them run the same study in step; each has the whole
data set, the first alone writes tables, and what to do next is what the first one sees.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .errors import ConfigError

MEMBERS = P("member")
"""Split over members, each on its share of the devices."""
BATCHES = P(None, "data")
"""Batches of several steps: each split over the data axis."""
COPIES = P()
"""A whole copy on every device."""


PATIENCE = 300
"""Seconds that the first processes of a study wait for the last one."""


def make_mesh(members: int, devices: Sequence[jax.Device]) -> Mesh | None:
    """A mesh over `devices`, as many rows as divide both them and the members; None for a single device."""
    if len(devices) < 2:
        return None
    rows = math.gcd(members, len(devices))
    shape = (rows, len(devices) // rows)
    # Auto, not Explicit: the compiler finds the shardings in between, as ordinary data-parallel code expects.
    return jax.make_mesh(shape, ("member", "data"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def over_data(tree: Any) -> Any:
    """Inside a program: splits the leading axis of every array over the mesh's data axis, as far as `shares` says."""
    split = lambda x: jax.lax.with_sharding_constraint(x, P("data")) if shares(x.shape[0]) > 1 else x
    return jax.tree.map(split, tree)


def shares(rows: int) -> int:
    """Inside a program: over how many devices a batch of so many rows is split.

    Without a mesh, or where its data axis does not divide the rows, every device computes all of them: the same numbers, no gain.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if mesh.empty else mesh.shape["data"]
    return 1 if rows % size else size


def place(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Every array of `tree` on the mesh, laid out as `spec`. Each process must hold the same values."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _place_everywhere(leaf, sharding), tree)


def _place_everywhere(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place_everywhere(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def local(tree: Any) -> Any:
    """This process's copy of arrays that every device holds whole."""

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return leaf.addressable_data(0)

    return jax.tree.map(one, tree)


def bring_up(where: str) -> None:
    """Joins this process to the others: `where` is "auto" (a TPU pod, SLURM, Open MPI) or "HOST:PORT,COUNT,INDEX".

    To be called before anything touches a device. Raises `ConfigError` for anything else, and where nothing tells "auto".
    """
    explicit = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", where)
    if where != "auto" and not (explicit and int(explicit[3]) < int(explicit[2])):
        raise ConfigError(f"--distributed: want auto or HOST:PORT,COUNT,INDEX with INDEX below COUNT, got {where!r}")
    print(f"d3jax: --distributed {where}: waiting for the other processes, at most {PATIENCE} s", file=sys.stderr, flush=True)
    patience = threading.Timer(PATIENCE, _give_up, (where,))  # jax's own end of waiting is an abort with a stack trace
    patience.daemon = True
    patience.start()
    try:
        given = {"initialization_timeout": PATIENCE + 60}
        if explicit:
            given |= {"coordinator_address": explicit[1], "num_processes": int(explicit[2]), "process_id": int(explicit[3])}
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        if where == "auto" and isinstance(error, ValueError):
            why = f"nothing here says which processes take part (no TPU pod, SLURM, Open MPI); give HOST:PORT,COUNT,INDEX ({why})"
        raise ConfigError(f"--distributed {where}: {why}") from error
    finally:
        patience.cancel()


def _give_up(where: str) -> None:
    print(f"d3jax: --distributed {where}: not all processes have come within {PATIENCE} s", file=sys.stderr, flush=True)
    os._exit(1)


def same_everywhere(text: str, what: str) -> None:
    """Raises `ConfigError` on every process where they do not all hold the same `text`. Call it everywhere."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int32)
    everyone = multihost_utils.process_allgather(mine)
    other = [i for i, theirs in enumerate(everyone) if not np.array_equal(theirs, everyone[0])]
    if other:
        raise ConfigError(f"--distributed: the {what} of process {other[0]} are not those of process 0")


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def agree(numbers: Sequence[int]) -> list[int]:
    """The first process's whole numbers (at most 63), on every process. Call it everywhere or nowhere."""
    if jax.process_count() == 1:
        return list(numbers)
    from jax.experimental import multihost_utils

    box = np.zeros(64, np.int32)
    box[0], box[1 : 1 + len(numbers)] = len(numbers), numbers
    box = multihost_utils.broadcast_one_to_all(box)
    return box[1 : 1 + int(box[0])].tolist()


def same_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first process's arrays on every process: sums in another order must not make them decide otherwise. Call it everywhere."""
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays))


def copies(tree: Any) -> Any:
    """Arrays that every process holds alike, as arrays of all of them, the form in which several processes save together."""
    if jax.process_count() == 1:
        return tree
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return place(tree, mesh, COPIES)
