"""The cross-entropy and the accuracy of a batch of logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Float32, Int32

from .types import Array


def cross_entropy(
    logits: Float[jax.Array, "*B K"], labels: Int32[Array, "*B"]
) -> Float[jax.Array, "*B"]:
    """Return the cross-entropy of every row of logits [..., K] with its label, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: Float[jax.Array, "B K"], labels: Int32[Array, " B"]) -> Float32[jax.Array, ""]:
    """Return the share of rows of `logits` [B, K] whose largest logit is that of the label."""
    return (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
