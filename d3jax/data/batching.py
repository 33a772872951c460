"""Which rows a step sees: a function of (key, step) alone, so that any step can be computed on its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ROUNDS = 8


def epoch_plan(size: int, batch_size: int, *, drop_last: bool) -> tuple[int, int]:
    """(steps an epoch, images a step) for `size` images and a wanted `batch_size`, with static shapes.

    `drop_last` leaves the short batch out, as training recipes do. Otherwise an epoch has ⌈size / batch_size⌉ equal
    batches: 2,500 images at 256 become ten of 250, where PyTorch has nine of 256 and one of 196. A set smaller than a
    batch is one batch.
    """
    batch_size = min(batch_size, size)
    steps = size // batch_size if drop_last else -(-size // batch_size)
    return steps, batch_size if drop_last else size // steps


def batch_rows(key: jax.Array, step: jax.Array, *, size: int, steps_per_epoch: int, batch_size: int) -> jax.Array:
    """Row numbers [batch_size] int32 of `step`: every epoch is a fresh shuffle of `size` rows, without replacement."""
    epoch, place = jnp.divmod(step, steps_per_epoch)
    return permute(jax.random.fold_in(key, epoch), place * batch_size + jnp.arange(batch_size), size)


def permute(key: jax.Array, positions: jax.Array, size: int) -> jax.Array:
    """Where a random permutation of `range(size)` sends `positions`, without building the permutation.

    A Feistel network over the next power of four, walked until it lands inside (Black & Rogaway 2002). Shuffling 50,000
    rows takes XLA:CPU 50 ms, a sixth of a small net's training step; this costs 0.1 ms for a batch.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = jnp.uint32((1 << half) - 1)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def encrypt(value: jax.Array) -> jax.Array:
        left, right = value >> half, value & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ round_keys[i]) & mask)
        return (left << half) | right

    def outside(value: jax.Array) -> jax.Array:
        return jnp.any(value >= size)

    def walk(value: jax.Array) -> jax.Array:
        return jnp.where(value >= size, encrypt(value), value)

    return jax.lax.while_loop(outside, walk, encrypt(positions.astype(jnp.uint32))).astype(jnp.int32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijective integer hash (the lowbias32 constants)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
