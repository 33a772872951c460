"""How a training step is compiled: on CPU with oneDNN, which jaxlib 0.11 carries but does not use by itself.

With it the convolutions of PreActResNet18 run at 150–265 GFLOP/s on two AVX-512 cores, where they ran at 60–170: a step at
width 16 and batch 128 takes 293 ms instead of 420.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform

import jax

TRIED = ("0.11",)
"""Releases of jaxlib that carry oneDNN's convolutions (0.10 does not) and whose options are known: an unknown one is an error."""

ONEDNN = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",  # YNNPACK would take the convolutions first
}


def uses_onednn() -> bool:
    """Whether steps are compiled with oneDNN here; `D3JAX_ONEDNN=0` in the environment says no."""
    release = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    intel = platform.machine() in ("x86_64", "AMD64")
    return jax.default_backend() == "cpu" and intel and release in TRIED and os.environ.get("D3JAX_ONEDNN") != "0"


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program, with this backend's fastest libraries. With oneDNN it stays out of the compile cache, which cannot hold it."""
    if not uses_onednn():
        return lowered.compile()
    # jaxlib 0.11.2 runs out of memory when it writes a oneDNN call to the cache; what compiles faster than ∞ is not written.
    least = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, least)
    jax.config.update(least, math.inf)
    try:
        return lowered.compile(ONEDNN)
    finally:
        jax.config.update(least, before)
