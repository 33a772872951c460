"""Losses and rates of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from .types import Array


def cross_entropy(logits: jax.Array, labels: Array) -> jax.Array:
    """Cross-entropy of every row [B], in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: jax.Array, labels: Array) -> jax.Array:
    """The share of rows classified as labelled."""
    return (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
