"""Losses and rates of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Float32, Int32

from .types import Array


def cross_entropy(
    logits: Float[jax.Array, "*B K"], labels: Int32[Array, "*B"]
) -> Float[jax.Array, "*B"]:
    """Cross-entropy of every row [..., K], in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: Float[jax.Array, "B K"], labels: Int32[Array, " B"]) -> Float32[jax.Array, ""]:
    """The share of rows classified as labelled."""
    return (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
