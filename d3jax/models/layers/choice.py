"""Choice of the form in which a convolution's gradients are computed on CPU.

Every rule stands beside the measurement behind it: milliseconds at batch 128 in float32, on two
cores with AVX-512, unless it says otherwise. `benchmarks/results/layers_cpu.txt` has more of them.
On other backends none of these rules is used, and XLA computes the gradients its own way.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from ...runtime.compilation import has_amx, uses_onednn

CHUNK = 3 << 20
"""Bytes that the two operands of a chunk of the weight gradient should have.

That is the size of two cores' second-level caches. It was measured as the best from 1 to 6 MiB.
"""

SUMS = 4 << 20
"""Bytes that the sums of chunks that are multiplied at once may have.

Time of one chunk at once over that of four, with oneDNN: 1.07 at 32×32×16, 1.35 at 16×16×32, 1.31
at 8×8×64, 1.20 at 32×32×64, 1.11 at 16×16×128. Larger sums lose: 0.80 at 4×4×512. In bfloat16 it is
1.07, 1.25, 1.19, 1.15 and 1.07. Without oneDNN four at once lose: 0.92 at 32×32×16, 0.71 at
4×4×128.
"""


def uses_amx(dtype: jnp.dtype) -> bool:
    """Return whether convolutions and products of a dtype are written so that AMX computes them.

    oneDNN does so in bfloat16, if the convolution has stride 1 and its kernel is not reversed, and
    if the product's result is bfloat16, too. GFLOP/s on one core with AMX, without → with: input
    gradient at 32×32×64 100 → 1,330, at 32×32×16 96 → 520; product of the weight gradient at
    32×32×64 89 → 240, at 8×8×256 137 → 480.
    """
    return dtype == jnp.bfloat16 and uses_onednn() and has_amx()


def images_a_chunk(batch: int, bytes_an_image: int, rows_an_image: int, side: int) -> int:
    """Return how many images of a batch one chunk of the weight gradient takes.

    It is a divisor of the batch size, near `CHUNK` bytes. Chunks are larger where moving the sum
    itself, which is `side` wide, would cost more.
    """
    wanted = max(CHUNK / bytes_an_image, side / 3 / rows_an_image)
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))


def chunks_at_once(chunks: int, bytes_a_sum: int) -> int:
    """Return how many chunks of the weight gradient are multiplied at once: 4, 2 or 1.

    It is a divisor of `chunks`. All sums together have at most `SUMS` bytes. See there.
    """
    most = SUMS // bytes_a_sum if uses_onednn() else 1
    return next(k for k in (4, 2, 1) if chunks % k == 0 and k <= max(most, 1))


def pads_each_neighbour() -> bool:
    """Return whether each shifted copy of an image is padded by itself.

    A jaxlib with oneDNN copies and pads at once: 7.4 ms in place of 9.1 ms at 32×32×16. jaxlib 0.10
    does so at half the speed.
    """
    return uses_onednn()


def takes_phases(size: int, stride: int, height: int, width: int, dtype: jnp.dtype) -> bool:
    """Return whether the input gradient of a convolution is computed by phases.

    It must be 3×3 of stride 2 on an even image. With AMX it always is. Native → by phases, with
    oneDNN, for the gradient of an image that is 32×32×16 9.0 → 3.4, 16×16×32 3.4 → 3.1, 8×8×64
    2.5 → 3.3.
    """
    fits = (size, stride) == (3, 2) and height % 2 == width % 2 == 0
    return fits and (width >= 16 and uses_onednn() or uses_amx(dtype))


def widens_twice(dtype: jnp.dtype) -> bool:
    """Return whether a batch of a dtype is converted to float32 again for each of two sums.

    Else XLA:CPU converts it once for both, and writes the float32 array to memory. Both sums of a
    bfloat16 batch, once → twice: 32×32×16 1.3 → 0.9, 32×32×64 11.1 → 1.1, 16×16×128 2.4 → 1.0.
    """
    return dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
