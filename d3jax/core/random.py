"""The function `stream`, which derives named random keys from one random key of JAX."""

from __future__ import annotations

import zlib

import jax


def stream(key: jax.Array, name: str) -> jax.Array:
    """Derive from a random key of JAX another random key, which belongs to the text `name`.

    The key depends on `key` and `name` alone, so a new stream never changes the other streams.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
