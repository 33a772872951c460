"""Convolutions that equal those of `flax.linen.Conv`, with a faster backward pass on CPU.

XLA:CPU computes the weight gradient of a convolution as a convolution with an image-sized kernel.
That runs at 3–60 GFLOP/s, where the forward pass runs at 80–180, or 150–265 with oneDNN (see
`runtime.compilation`). Here the weight gradient is a matrix product for a few images at a time, so
that its operands stay in cache (see `choice`). Time in ms at batch 128 on two cores, native → here:

- jax 0.10.2, 3×3 of stride 1: 32×32×8 13.5 → 4.6, 32×32×16 29 → 9.6, 32×32×64 596 → 100,
  16×16×128 229 → 67, 8×8×256 162 → 59, 4×4×512 68 → 55.
- jax 0.10.2, stride 2 at 32×32×64: 3×3 179 → 50, the 1×1 shortcut 77 → 7.
- jax 0.11.2 with oneDNN: 32×32×16 26 → 7.4. Here alone: 32×32×64 80, 16×16×128 55.
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

from ...runtime.sharding import shares
from . import choice

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def torch_uniform(fan_in: int):
    """Return PyTorch's default initialiser of weights and biases, U(−1/√fan_in, 1/√fan_in).

    PyTorch uses it for convolutions and for linear layers.
    """
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class Conv(nn.Module):
    """A square convolution layer with PyTorch's geometry and initial weights.

    `size` is odd, and the padding on every side is size // 2.
    """

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


def apart(x: jax.Array) -> jax.Array:
    """Return an array that the compiler does not fuse with what follows, if it must not.

    On CPU jaxlib 0.11.2 fuses bfloat16 convolutions with the pooling and the linear layers that
    follow (a fusion of YNNPACK). The logits of such programs are NaN. Programs that `compilation`
    compiles for oneDNN are not affected.
    """
    if x.dtype != jnp.bfloat16:
        return x
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve images x [B, H, W, C] with a kernel [k, k, C, D], with a fast backward pass on CPU.

    The result is [B, ⌈H / stride⌉, ⌈W / stride⌉, D]. k is odd, and the padding is k // 2.
    """
    return _forward(x, kernel, stride)[0]


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=_LAYOUT
    )


def _forward(x, kernel, stride):
    y = _native(x, kernel, stride)
    return apart(y), (x, kernel)


def _backward(stride, residuals, g):
    x, kernel = residuals
    size, (height, width) = kernel.shape[0], x.shape[1:3]

    def native(x, g):
        return jax.linear_transpose(lambda k: _native(x, k, stride), kernel)(g)[0]

    ours = functools.partial(weight_gradient, size=size, stride=stride)
    if choice.takes_phases(size, stride, height, width, x.dtype):
        dx = input_gradient_by_phases(kernel, g)
    elif choice.uses_amx(x.dtype) and (stride == 1 or size == 1):
        dx = input_gradient_by_convolution(kernel, g, stride, (height, width))
    else:
        (dx,) = jax.linear_transpose(lambda x: _native(x, kernel, stride), x)(g)
    return dx, lax.platform_dependent(x, g, cpu=ours, default=native)


convolve.defvjp(_forward, _backward)


def input_gradient_by_phases(kernel: jax.Array, g: jax.Array) -> jax.Array:
    """Return the gradient [B, 2h, 2w, C] by the input of a 3×3 convolution of stride 2.

    `kernel` is [3, 3, C, D], and `g` [B, h, w, D] is the gradient of the output. Pixels of even and
    odd rows and columns meet different taps. With a tap of zeros in front, the kernel is therefore
    four kernels of 2×2. One convolution of stride 1, the only stride that oneDNN takes, applies
    them to `g`. Their results are interleaved.
    """
    b, h, w, d = g.shape
    c = kernel.shape[2]
    # taps: [row // 2, row % 2, column // 2, column % 2, C, D].
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, c, d)
    taps = taps[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, d, 4 * c)
    phases = lax.conv_general_dilated(g, taps, (1, 1), ((0, 1), (0, 1)), dimension_numbers=_LAYOUT)
    return phases.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)


def input_gradient_by_convolution(
    kernel: jax.Array, g: jax.Array, stride: int, shape: tuple[int, int]
) -> jax.Array:
    """Return the gradient [B, *shape, C] by the input of a convolution of stride 1 or size 1.

    `kernel` is [k, k, C, D], and `g` [B, h, w, D] is the gradient of the output. It is `g`,
    convolved with the reversed kernel. With a stride, zeros stand between its pixels.
    """
    dx = _native(g, kernel[::-1, ::-1].swapaxes(2, 3), 1)
    if stride == 1:
        return dx
    ends = [
        size - 1 - stride * (small - 1) for size, small in zip(shape, g.shape[1:3], strict=True)
    ]
    gaps = [(0, end, stride - 1) for end in ends]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])


def weight_gradient(x: jax.Array, g: jax.Array, *, size: int, stride: int) -> jax.Array:
    """Return the kernel gradient [size, size, C, D] of a convolution, as matrix products.

    `x` [B, H, W, C] is the input, and `g` [B, H', W', D] the gradient of the output. The gradient
    is a sum over chunks of images.
    """
    n, c, d = shares(len(x)), x.shape[3], g.shape[3]
    operands = (
        _shifted
        if (size, stride) == (3, 1)
        else functools.partial(_patches, size=size, stride=stride)
    )
    if n == 1:
        total = _chunked_product(operands, x, g)
    else:  # Each device takes its own images: a loop over slices would gather a split batch on all.

        def share(array):
            return array.reshape(n, -1, *array.shape[1:])

        total = jax.vmap(functools.partial(_chunked_product, operands))(share(x), share(g)).sum(0)
    if operands is _shifted:
        total = total.reshape(3, c, 3, d).transpose(2, 0, 1, 3)
    return total.reshape(size, size, c, d).astype(x.dtype)


def _chunked_product(operands: Callable, x: jax.Array, g: jax.Array) -> jax.Array:
    """Sum the matrix products leftᵀ right of (left, right) = operands(x, g) over image chunks."""
    left, right = jax.eval_shape(operands, x[:1], g[:1])
    rows, sides = len(left), (left.shape[1], right.shape[1])
    n = choice.images_a_chunk(len(x), x.dtype.itemsize * (left.size + right.size), rows, max(sides))
    k = choice.chunks_at_once(len(x) // n, 4 * math.prod(sides))
    kind = x.dtype if choice.uses_amx(x.dtype) else jnp.float32

    def add(i, total):
        # Sliced here, because XLA would compute x a second time to hand it to the loop in chunks.
        parts = (lax.dynamic_slice_in_dim(array, i * k * n, k * n) for array in (x, g))
        left, right = (part.reshape(k, n * rows, -1) for part in operands(*parts))
        product = lax.dot_general(
            left, right, (((1,), (1,)), ((0,), (0,))), preferred_element_type=kind
        )
        return total + product.astype(jnp.float32)

    start = jnp.zeros((k, *sides), jnp.float32)
    return lax.fori_loop(0, len(x) // (k * n), add, start).sum(0)


def _shifted(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two matrices whose product is the kernel gradient of a 3×3 convolution of stride 1.

    The first holds, for each pixel of x, its left neighbour, itself and its right neighbour, side
    by side. The second holds, for each pixel of g, its lower neighbour, itself and its upper
    neighbour. Their product holds all nine taps and nothing else. It needs a third of the copying
    of nine shifted images.
    """
    columns = jnp.concatenate(_neighbours(x, 2), -1)
    rows = jnp.concatenate(_neighbours(g, 1)[::-1], -1)
    return columns.reshape(-1, columns.shape[3]), rows.reshape(-1, rows.shape[3])


def _neighbours(array: jax.Array, axis: int) -> list[jax.Array]:
    """Return three arrays: the entries before, at and after each place along `axis`; 0 outside."""

    def pad(part, before, after):
        return jnp.pad(part, [(before, after) if i == axis else (0, 0) for i in range(array.ndim)])

    size = array.shape[axis]
    if choice.pads_each_neighbour():
        part = functools.partial(lax.slice_in_dim, array, axis=axis)
        return [pad(part(0, size - 1), 1, 0), array, pad(part(1, size), 0, 1)]
    padded = pad(array, 1, 1)
    return [lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)]


def _patches(x: jax.Array, g: jax.Array, *, size: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """Return two matrices whose product is a convolution's kernel gradient, at any size and stride.

    They are the patch of x under each pixel of g, and g.
    """
    pad, (height, width) = size // 2, g.shape[1:3]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def reach(first, count):
        return slice(first, first + stride * (count - 1) + 1, stride)

    taps = [x[:, reach(i, height), reach(j, width)] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(taps, -1)
    return patches.reshape(-1, patches.shape[3]), g.reshape(-1, g.shape[3])
