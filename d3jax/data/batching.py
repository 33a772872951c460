"""Functions that compute which rows of a set form a training batch, from (key, step) alone.

Any step can therefore be computed without the steps before it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.errors import ConfigError


def epoch_plan(size: int, batch_size: int, *, drop_last: bool) -> tuple[int, int]:
    """Return (steps per epoch, images per step) for `size` images and a wanted `batch_size`.

    All batches have the same size, so that shapes are static. `drop_last` leaves out the short
    batch, as training recipes do. Otherwise an epoch has ⌈size / batch_size⌉ equal batches. For
    example, 2,500 images at 256 become ten batches of 250, where PyTorch has nine of 256 and one of
    196. A set smaller than a batch is one batch. Raises `ConfigError` where `drop_last` leaves
    nothing.
    """
    if drop_last and batch_size > size:
        raise ConfigError(f"batch_size: {batch_size} is more than the {size} images there are")
    batch_size = min(batch_size, size)
    steps = size // batch_size if drop_last else -(-size // batch_size)
    return steps, batch_size if drop_last else size // steps


def batch_rows(
    key: jax.Array, step: jax.Array, *, size: int, steps_per_epoch: int, batch_size: int
) -> jax.Array:
    """Return the row numbers [batch_size] int32, in the training set, of the batch at `step`.

    Every epoch is a new shuffle of the `size` rows, without replacement.
    """
    epoch, place = jnp.divmod(step, steps_per_epoch)
    return permute(
        jax.random.fold_in(key, epoch), place * batch_size + jnp.arange(batch_size), size
    )


def permute(key: jax.Array, positions: jax.Array, size: int) -> jax.Array:
    """Evaluate a random permutation of `range(size)` at `positions`, without building it.

    The result is int32. A swap-or-not network (Hoang, Morris & Rogaway 2012) computes it in about
    6·log₂(size) rounds. Each round pairs x with pivot − x and swaps the pair or not, by one hashed
    bit. Shuffling 50,000 rows takes XLA:CPU 50 ms, a sixth of the training step of a small network.
    This costs 0.1 ms for a batch. It needs no loop of unknown length, for which a GPU would wait on
    the host.
    """
    rounds = 6 * size.bit_length()
    key_pivots, key_hashes = jax.random.split(key)
    pivots = jax.random.randint(key_pivots, (rounds,), 0, size).astype(jnp.uint32)
    hashes = jax.random.bits(key_hashes, (rounds,), jnp.uint32)

    def swap_or_not(i: jax.Array, x: jax.Array) -> jax.Array:
        partner = jnp.where(x > pivots[i], pivots[i] + jnp.uint32(size) - x, pivots[i] - x)
        return jnp.where(_mix(jnp.maximum(x, partner) ^ hashes[i]) & 1, partner, x)

    # Unrolled it is one kernel on an accelerator, but costs a second of compilation on CPU.
    unroll = jax.default_backend() != "cpu"
    return jax.lax.fori_loop(
        0, rounds, swap_or_not, positions.astype(jnp.uint32), unroll=unroll
    ).astype(jnp.int32)


def _mix(x: jax.Array) -> jax.Array:
    """Return a bijective hash of uint32 integers (the lowbias32 constants)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
