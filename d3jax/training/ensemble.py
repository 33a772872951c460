"""Train loops that run together as the members of one compiled program.

Their states and data are stacked on a leading axis, which is split over the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Batch, Device, TrainState
from ..runtime.sharding import BATCHES, COPIES, MEMBERS, device_put_global, local, make_mesh
from .scan import ScannedStep
from .step import Step


class Ensemble:
    """Train loops that share one train step and run as the members of one vmapped program.

    `state` and `data` are those of the loops, stacked on a leading axis where there are several
    loops. They are split over `devices` (none: the default device). `repeat` is the `ScannedStep`
    that runs the members. The methods return the part of a result that belongs to one member.
    """

    def __init__(
        self,
        step: Step,
        states: Sequence[TrainState],
        datas: Sequence[Any],
        devices: Sequence[Device] = (),
        steps_per_call: int = 0,
    ):
        self.several = len(states) > 1
        mesh = self.mesh = make_mesh(len(states), devices)
        self.device = devices[0] if devices else None
        if self.several:
            self.state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            self.data, axes = _stack_data(datas)
            step = jax.vmap(step, in_axes=(0, axes), spmd_axis_name="member" if self.mesh else None)
            if mesh:

                def split(axis, leaf):
                    return device_put_global(leaf, mesh, COPIES if axis is None else MEMBERS)

                self.data = jax.tree.map(split, axes, self.data, is_leaf=lambda axis: axis is None)
        else:
            self.state, self.data = jax.tree.map(jnp.copy, states[0]), datas[0]
            if self.mesh:
                self.data = device_put_global(self.data, self.mesh, COPIES)
        if self.mesh:
            self.state = device_put_global(
                self.state, self.mesh, MEMBERS if self.several else COPIES
            )
        else:
            self.state, self.data = jax.device_put((self.state, self.data), self.device)
        self.repeat = ScannedStep(
            step, steps_per_call=steps_per_call, mesh=self.mesh, members=self.several
        )
        everywhere = jax.sharding.NamedSharding(self.mesh, COPIES) if self.mesh else None
        self._pick = jax.jit(
            lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree), out_shardings=everywhere
        )
        check = jax.vmap(_all_finite) if self.several else _all_finite
        self._finite = jax.jit(check, out_shardings=everywhere)

    def fed(self, batches: list[Batch]) -> Any:
        """Return an ensemble's train data with host `batches` put in, one for each step of a call.

        On a mesh each device gets only its share of every batch, or all of it where the mesh does
        not divide the batch evenly.
        """
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        if not self.mesh:
            return self.data._replace(batch=jax.device_put(stacked, self.device))
        share = COPIES if len(batches[0].labels) % self.mesh.shape["data"] else BATCHES
        return self.data._replace(batch=device_put_global(stacked, self.mesh, share))

    def state_of(self, state: TrainState, i: int) -> TrainState:
        """Return the `TrainState` of member `i` of an ensemble, on one device of this process."""
        picked = self._pick(state, i) if self.several else state
        return local(picked) if self.mesh else picked

    def metrics_of(self, stacked: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
        """Return the metrics of member `i` of an ensemble, as arrays over the steps, by name."""
        return {name: values[:, i] for name, values in stacked.items()} if self.several else stacked

    def finite(self, state: TrainState) -> np.ndarray:
        """Return which members of an ensemble have only finite variables, as a boolean array."""
        return np.atleast_1d(jax.device_get(self._finite(state.variables)))


def _stack_data(datas: Sequence[Any]) -> tuple[Any, Any]:
    """Stack the data of several train loops into one tree; return it and each array's vmap axis.

    An array that all members share is kept once, and its axis is None. Every other axis is 0.
    """
    leaves, treedef = zip(*map(jax.tree.flatten, datas), strict=True)
    columns = list(zip(*leaves, strict=True))
    shared = [all(leaf is column[0] for leaf in column) for column in columns]
    stacked = [
        column[0] if same else jnp.stack(column)
        for column, same in zip(columns, shared, strict=True)
    ]
    unflatten = treedef[0].unflatten
    return unflatten(stacked), unflatten([None if same else 0 for same in shared])


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
