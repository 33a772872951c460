"""Depthwise convolutions that equal those of a grouped `flax.linen.Conv`, faster on CPU.

XLA:CPU runs grouped convolutions at under 1 GFLOP/s. Here, on CPU, each tap multiplies a shifted
image by one number a channel. With 7×7 kernels on 64 images, the time of forward and backward fell
from 447 to 145 ms at 16×16×64, and from 80 to 10 ms at 8×8×16 (two cores, another program running).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ...runtime.sharding import shares


class Depthwise(nn.Module):
    """A depthwise convolution layer: every channel has its own square kernel, plus a bias.

    `size` is odd, the stride is 1 and the padding size // 2.
    """

    size: int = 7
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.truncated_normal(0.02)
        kernel = self.param("kernel", start, (self.size, self.size, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return convolve_depthwise(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(
            self.dtype
        )


@jax.custom_vjp
def convolve_depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve every channel of images [B, H, W, C] with its own kernel, of `kernel` [k, k, 1, C].

    The result is [B, H, W, C]. k is odd, and the padding is k // 2.
    """
    return lax.platform_dependent(x, kernel, cpu=_by_taps, default=_native)


def _native(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=x.shape[3]
    )


def _forward(x, kernel):
    return convolve_depthwise(x, kernel), (x, kernel)


def _backward(residuals, g):
    x, kernel = residuals

    def native(x, g):
        return jax.linear_transpose(lambda k: _native(x, k), kernel)(g)[0]

    ours = functools.partial(_kernel_gradient, size=len(kernel))
    return convolve_depthwise(g, kernel[::-1, ::-1]), lax.platform_dependent(
        x, g, cpu=ours, default=native
    )


convolve_depthwise.defvjp(_forward, _backward)


def _by_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve every channel of images with its own kernel, in a loop over the kernel's rows.

    A program with all taps written out would not read memory less often, and would take seven times
    as long to compile.
    """
    height, width = x.shape[1:3]
    padded = _pad(x, len(kernel))

    def row(i, total):
        rows = lax.dynamic_slice_in_dim(padded, i, height, 1)
        return total + sum(rows[:, :, j : j + width] * kernel[i, j] for j in range(len(kernel)))

    return lax.fori_loop(0, len(kernel), row, jnp.zeros_like(x))


def _kernel_gradient(x: jax.Array, g: jax.Array, *, size: int) -> jax.Array:
    """Return the kernel gradient [size, size, 1, C] of a depthwise convolution, tap by tap."""
    # Each device sums its own images: sums over a split batch would cross devices in every tap.
    n = shares(len(x))

    def share(array):
        return array.reshape(n, -1, *array.shape[1:])

    height, width = g.shape[1:3]

    def of_share(x, g):
        padded = _pad(x, size)

        def tap(i):
            corner = (0, i // size, i % size, 0)
            return (lax.dynamic_slice(padded, corner, (len(x), height, width, x.shape[3])) * g).sum(
                (0, 1, 2), dtype=jnp.float32
            )

        return lax.map(tap, jnp.arange(size * size))

    total = jax.vmap(of_share)(share(x), share(g)).sum(0)
    return total.reshape(size, size, 1, x.shape[3]).astype(x.dtype)


def _pad(x: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
