"""Convolutions as this package's models use them: same numbers as `flax.linen.Conv`, faster backward pass on CPU.

XLA:CPU computes the weight gradient of a convolution as a convolution with an image-sized kernel, at 3–60 GFLOP/s where the
forward pass runs at 80–180 (150–265 with oneDNN, see `compiling`). Here it is a matrix product for a few images at a time, so that
what it multiplies stays in cache. Measured at batch 128 on two cores (ms, native → here, jax 0.10.2): 32×32×8 13.5 → 4.6, 32×32×16
29 → 9.6, 32×32×64 596 → 100, 16×16×128 229 → 67, 8×8×256 162 → 59, 4×4×512 68 → 55; 3×3 of stride 2 at 32×32×64 179 → 50, the 1×1
shortcut there 77 → 7. With jax 0.11.2 and oneDNN 32×32×16 26 → 7.4, 32×32×64 80, 16×16×128 55.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ...runtime.compilation import uses_onednn
from ...runtime.sharding import shares

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PHASES = 16
"""Pixels across from which `input_gradient_by_phases` is faster: 3.4 for 9.0 ms at 32×32×16, 3.1 for 3.4 at 16×16×32, 3.3 for 2.5 at 8×8×64."""
_CHUNK = 3 << 20
"""Bytes of a chunk's two operands: the second-level caches of two cores, measured as the best from 1 to 6 MiB."""


def torch_uniform(fan_in: int):
    """U(±1/√fan_in): PyTorch's default initialiser of convolutions and linear layers, weights and biases alike."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class Conv(nn.Module):
    """A square convolution: `channels` out, odd `size`, padding size // 2 on every side (PyTorch's geometry)."""

    channels: int
    size: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = torch_uniform(self.size**2 * x.shape[-1])
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.channels))
        y = cast(jax.Array, convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride))
        return y + self.param("bias", init, (self.channels,)).astype(self.dtype) if self.bias else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """x [B, H, W, C] ∗ kernel [k, k, C, D] → [B, ⌈H / stride⌉, ⌈W / stride⌉, D], k odd, padding k // 2."""
    return _native(x, kernel, stride)


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=_LAYOUT
    )


def _forward(x, kernel, stride):
    return _native(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
    x, kernel = residuals
    size, (height, width) = kernel.shape[0], x.shape[1:3]

    def native(x, g):
        return jax.linear_transpose(lambda k: _native(x, k, stride), kernel)(g)[0]

    ours = functools.partial(weight_gradient, size=size, stride=stride)
    if (
        (size, stride) == (3, 2)
        and height % 2 == width % 2 == 0
        and width >= _PHASES
        and uses_onednn()
    ):
        dx = input_gradient_by_phases(kernel, g)
    else:
        (dx,) = jax.linear_transpose(lambda x: _native(x, kernel, stride), x)(g)
    return dx, lax.platform_dependent(x, g, cpu=ours, default=native)


convolve.defvjp(_forward, _backward)


def input_gradient_by_phases(kernel: jax.Array, g: jax.Array) -> jax.Array:
    """The input gradient [B, 2h, 2w, C] of a 3×3 convolution of stride 2 from kernel [3, 3, C, D] and g [B, h, w, D].

    Pixels of even and odd rows and columns meet different taps: with a tap of zeros in front, the kernel is four kernels of 2×2, which
    one convolution of stride 1 (oneDNN takes no other) applies to g. Their results are then put in between each other.
    """
    b, h, w, d = g.shape
    c = kernel.shape[2]
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(
        2, 2, 2, 2, c, d
    )  # [row / 2, row % 2, column / 2, …]
    taps = taps[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, d, 4 * c)
    phases = lax.conv_general_dilated(g, taps, (1, 1), ((0, 1), (0, 1)), dimension_numbers=_LAYOUT)
    return phases.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)


def weight_gradient(x: jax.Array, g: jax.Array, *, size: int, stride: int) -> jax.Array:
    """The kernel gradient [size, size, C, D] from x [B, H, W, C] and g [B, H', W', D]: a sum over chunks of images."""
    n, c, d = shares(len(x)), x.shape[3], g.shape[3]
    operands = (
        _shifted
        if (size, stride) == (3, 1)
        else functools.partial(_patches, size=size, stride=stride)
    )
    if n == 1:
        total = _chunked_product(operands, x, g)
    else:  # each device its own images: sliced in a loop, a split batch would be gathered whole on every one

        def share(array):
            return array.reshape(n, -1, *array.shape[1:])

        total = jax.vmap(functools.partial(_chunked_product, operands))(share(x), share(g)).sum(0)
    if operands is _shifted:
        total = total.reshape(3, c, 3, d).transpose(2, 0, 1, 3)
    return total.reshape(size, size, c, d).astype(x.dtype)


def _chunked_product(operands: Callable, x: jax.Array, g: jax.Array) -> jax.Array:
    """Σ leftᵀ right over chunks of the images, with (left, right) = operands(x, g) of a chunk."""
    b, (left, right) = len(x), jax.eval_shape(operands, x[:1], g[:1])
    n = _images_a_chunk(
        b,
        x.dtype.itemsize * (left.size + right.size),
        len(left),
        max(left.shape[1], right.shape[1]),
    )

    def add(i, total):
        # Sliced here: handed to the loop in chunks, XLA would compute x once more to have it in that shape.
        left, right = operands(*(lax.dynamic_slice_in_dim(array, i * n, n) for array in (x, g)))
        return total + lax.dot_general(
            left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )

    return lax.fori_loop(0, b // n, add, jnp.zeros((left.shape[1], right.shape[1]), jnp.float32))


def _shifted(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For 3×3 of stride 1: the columns to the left, here and right of x, and the rows of g below, here and above, side by side.

    Their product holds all nine taps and nothing else, at a third of the copying that nine shifted images would take.
    """
    columns = jnp.concatenate(_neighbours(x, 2), -1)
    rows = jnp.concatenate(_neighbours(g, 1)[::-1], -1)
    return columns.reshape(-1, columns.shape[3]), rows.reshape(-1, rows.shape[3])


def _neighbours(array: jax.Array, axis: int) -> list[jax.Array]:
    """What stands before, at and after each place along `axis`, zeros beyond the ends."""

    def pad(part, before, after):
        return jnp.pad(part, [(before, after) if i == axis else (0, 0) for i in range(array.ndim)])

    size = array.shape[axis]
    if uses_onednn():  # that jaxlib copies and pads at once: 7.4 for 9.1 ms at 32×32×16; 0.10 does so at half the speed
        part = functools.partial(lax.slice_in_dim, array, axis=axis)
        return [pad(part(0, size - 1), 1, 0), array, pad(part(1, size), 0, 1)]
    padded = pad(array, 1, 1)
    return [lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)]


def _patches(x: jax.Array, g: jax.Array, *, size: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """For any size and stride: the patch of x under each pixel of g, and g."""
    pad, (height, width) = size // 2, g.shape[1:3]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def reach(first, count):
        return slice(first, first + stride * (count - 1) + 1, stride)

    taps = [x[:, reach(i, height), reach(j, width)] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(taps, -1)
    return patches.reshape(-1, patches.shape[3]), g.reshape(-1, g.shape[3])


def _images_a_chunk(batch: int, bytes_an_image: int, rows_an_image: int, side: int) -> int:
    """How many images: a divisor of the batch, near `_CHUNK` bytes; more where the sum itself, `side` wide, is what moves."""
    wanted = max(_CHUNK / bytes_an_image, side / 3 / rows_an_image)
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))
