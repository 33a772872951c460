"""Batch normalisation that equals `flax.linen.BatchNorm`, with a faster gradient on CPU.

XLA:CPU first writes to memory much of the data that it sums over pixels. The gradient in closed
form (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3) needs less of this than the gradient that
JAX derives from Linen's formula. Time in ms of forward and backward with the ReLU that follows, at
batch 128 on two cores, `jax.grad` → here: 32×32×16 7.4 → 5.1, 16×16×32 2.5 → 1.5, 32×32×64 42 → 28.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from . import choice

MOMENTUM, EPSILON = 0.9, 1e-5
"""Momentum and ε of PyTorch's defaults; PyTorch writes this momentum as 0.1."""


class BatchNorm(nn.Module):
    """A batch normalisation layer over the last axis, by batch (`train`) or running statistics.

    Parameters are `scale` and `bias` [C]; the state is `mean` and `var` [C] in `batch_stats`.
    Statistics are float32. The variance is the biased one, also the running variance (PyTorch's is
    unbiased). The result has `dtype`.
    """

    train: bool
    dtype: jnp.dtype = jnp.float32
    momentum: float = MOMENTUM

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        if not self.train:
            factor = scale * lax.rsqrt(var.value + EPSILON)
            return _affine(x, factor, bias - mean.value * factor).astype(self.dtype)
        y, batch_mean, batch_var = normalise_batch(x, scale, bias)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y.astype(self.dtype)


@jax.custom_vjp
def normalise_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise a batch x [..., C] by its mean and variance; return (y, mean [C], variance [C]).

    y = x̂ · scale + bias has x's dtype. The gradient is in closed form.
    """
    return _forward(x, scale, bias)[0]


def _affine(x, factor, offset):
    return x.astype(jnp.float32) * factor + offset


def _forward(x, scale, bias):
    pixels = tuple(range(x.ndim - 1))
    mean = x.astype(jnp.float32).mean(pixels)
    wide = (lax.optimization_barrier(x) if choice.widens_twice(x.dtype) else x).astype(jnp.float32)
    var = jnp.maximum((wide * wide).mean(pixels) - mean * mean, 0)
    inverse = lax.rsqrt(var + EPSILON)
    y = _affine(x, scale * inverse, bias - mean * scale * inverse).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, scale)


def _backward(residuals, cotangents):
    x, mean, inverse, scale = residuals
    pixels, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide, g, d_mean, d_var = (
        x.astype(jnp.float32),
        cotangents[0].astype(jnp.float32),
        *cotangents[1:],
    )
    d_bias = g.sum(pixels)
    d_scale = inverse * ((g * wide).sum(pixels) - mean * d_bias)
    # dx = scale/σ · (g − Σg/n − x̂ · Σ(g x̂)/n) + (d_mean + 2 (x − mean) · d_var) / n,
    # written as g · a + x · b + c.
    a = scale * inverse
    b = (2 * d_var - a * inverse * d_scale) / count
    dx = g * a + wide * b + ((d_mean - a * d_bias) / count - b * mean)
    return dx.astype(x.dtype), d_scale, d_bias


normalise_batch.defvjp(_forward, _backward)
