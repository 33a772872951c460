"""A loss in closed form with drawn batches, for tests of steps and loops."""

import jax
import jax.numpy as jnp
import numpy as np

from d3jax.core.types import Batch, Variables
from d3jax.training import (
    init_state,
)


def quadratic(params, batch_stats, batch, key, data):
    """½‖w − mean of the batch‖², a little noise from the key, and the count of steps as statistics."""
    noise = 0.01 * jax.random.normal(key, params["w"].shape)
    loss = 0.5 * jnp.sum((params["w"] - batch.images.mean((0, 1, 2)) + noise) ** 2)
    return loss, ({"seen": batch_stats["seen"] + 1}, {"size": jnp.sum(params["w"] ** 2)})


def drawn(key, step, data):
    rows = jax.random.randint(jax.random.fold_in(key, step), (4,), 0, len(data))
    return Batch(data[rows], jnp.zeros(4, int), jnp.zeros(4, bool))


DATA = jnp.asarray(np.random.default_rng(0).random((20, 2, 2, 3)), jnp.float32)


def fresh(tx):
    return init_state(Variables({"w": jnp.ones(3)}, {"seen": jnp.int32(0)}), tx, jax.random.key(7))
