"""What makes XLA:CPU fast and has to stand in the environment before jax starts. Nothing here imports jax.

Measured with PreActResNet18 at batch 128 on two AVX-512 cores:

- Huge pages for malloc: XLA takes hundreds of MB afresh for every step; at 4 KiB a page that cost 22 % of a step (289 → 226 ms, width 8).
- oneDNN for convolutions and matrix products, which jaxlib 0.11 carries but does not use by itself: 305 → 437 images/s at width
  16. Its flags also take convolutions away from YNNPACK, which would otherwise come first, and leave it the sums. jaxlib
  0.10 has them without effect; where a flag is unknown, XLA ends the process, so they are set for releases that were tried.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence

ONEDNN = (
    "--xla_cpu_experimental_onednn_custom_call=true",
    "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot",
)
TRIED = ("0.11",)
"""The releases of jaxlib that `ONEDNN` was tried with."""


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to `environment`. What is set there already stays as it is."""
    added = {}
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in environment:
        added["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    flags = environment.get("XLA_FLAGS", "")
    if sys.platform == "linux" and platform.machine() == "x86_64" and _jaxlib() in TRIED and "onednn" not in flags:
        added["XLA_FLAGS"] = " ".join((*ONEDNN, flags)).strip()
    return added


def _jaxlib() -> str:
    """`0.11` for jaxlib 0.11.2."""
    return ".".join(importlib.metadata.version("jaxlib").split(".")[:2])


def start_again(words: Sequence[str]) -> None:
    """Starts this process again as `python *words` where its environment lacks settings; returns where it does not."""
    if added := settings(os.environ):
        os.environ |= added
        os.execv(sys.executable, [sys.executable, *words])
