"""A quadratic loss on random batches, for tests of train steps and train loops."""

import jax
import jax.numpy as jnp
import numpy as np

from d3jax.core.types import Batch, Variables
from d3jax.training import (
    init_state,
)


def quadratic(params, batch_stats, batch, key, data):
    """Return the loss ½‖w − batch mean + noise‖², with the step count as batch statistics.

    The noise comes from the key and has standard deviation 0.01.
    """
    noise = 0.01 * jax.random.normal(key, params["w"].shape)
    loss = 0.5 * jnp.sum((params["w"] - batch.images.mean((0, 1, 2)) + noise) ** 2)
    return loss, ({"seen": batch_stats["seen"] + 1}, {"size": jnp.sum(params["w"] ** 2)})


def drawn(key, step, data):
    """Return a batch of 4 rows, drawn at random from `data` for this step."""
    rows = jax.random.randint(jax.random.fold_in(key, step), (4,), 0, len(data))
    return Batch(data[rows], jnp.zeros(4, int), jnp.zeros(4, bool))


DATA = jnp.asarray(np.random.default_rng(0).random((20, 2, 2, 3)), jnp.float32)


def fresh(tx):
    """Return the initial train state of the quadratic loss."""
    return init_state(Variables({"w": jnp.ones(3)}, {"seen": jnp.int32(0)}), tx, jax.random.key(7))
