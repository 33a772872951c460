"""BatchNorm's running statistics, estimated again for parameters that no training produced."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ..core.images import as_float
from ..core.types import Model, Params, Split, Variables
from ..data.batched import consecutive


def with_estimated_statistics(
    model: Model, variables: Variables, images: Split, batch_size: int = 250
) -> Variables:
    """Return a model's variables with BatchNorm statistics that are estimated again on `images`.

    They are the mean over batches of the statistics in train mode. A running statistic moves by m ·
    old + (1 − m) · batch. Two old values, 0 and 1, therefore give the batch's value without knowing
    m.
    """
    if not jax.tree.leaves(variables.batch_stats):
        return variables
    size = min(batch_size, len(images.labels))
    moved = functools.partial(_moved, model, variables.params)
    parts = []
    for (levels,) in consecutive(images.images, batch_size=size, drop_last=True):
        batch = as_float(jnp.asarray(levels))
        zero, one = (
            moved(
                jax.tree.map(lambda x, fill=fill: jnp.full_like(x, fill), variables.batch_stats),
                batch,
            )
            for fill in (0, 1)
        )
        parts.append(jax.tree.map(lambda a, b: a / (1 - (b - a)), zero, one))
    return variables._replace(
        batch_stats=jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)
    )


@functools.partial(jax.jit, static_argnums=0)
def _moved(model: Model, params: Params, batch_stats: Params, images: jax.Array) -> Params:
    return model.apply(Variables(params, batch_stats), images, train=True).batch_stats
