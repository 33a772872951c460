"""The discrete cosine transform as a matrix."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64


def dct_matrix(n: int) -> Float64[np.ndarray, "n n"]:
    """Return the orthonormal DCT-II as a matrix; its row k is the wave of frequency k.

    Entry (k, i) is s_k · cos(π k (2i + 1) / 2n), with s_0 = √(1/n) and s_k = √(2/n).
    """
    k, i = np.arange(n)[:, None], np.arange(n)
    matrix = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    matrix[0] = np.sqrt(1 / n)
    return matrix
