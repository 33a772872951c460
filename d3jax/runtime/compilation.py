"""How training steps and evaluation are compiled: once for all that share a program, and on CPU with oneDNN.

jaxlib 0.11 carries oneDNN but does not use it by itself. With it the convolutions of PreActResNet18 run at 150–265 GFLOP/s on two
AVX-512 cores, where they ran at 60–170: a step at width 16 and batch 128 takes 293 ms instead of 420.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from ..core.types import Device

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
    return (
        jax.default_backend() == "cpu"
        and intel
        and release in TRIED
        and os.environ.get("D3JAX_ONEDNN") != "0"
    )


KEPT = 32
"""Programs kept for the next loop of a study that computes the same on other arrays: other seeds, other rates, other numbers."""

_programs: collections.OrderedDict[Any, jax.stages.Compiled] = collections.OrderedDict()


def compiled(lowered: jax.stages.Lowered, devices: Iterable[Device] = ()) -> jax.stages.Compiled:
    """The program on `devices`, with this backend's fastest libraries; one that was asked for before is not compiled again."""
    text = hashlib.sha256(lowered.as_text().encode()).hexdigest()  # constants included
    given = tuple(
        jax.tree.leaves(lowered.in_avals)
    )  # the text leaves out arguments that are not used
    key = (text, given, uses_onednn(), lowered.in_tree, lowered.out_tree, frozenset(devices))
    if key not in _programs:
        _programs[key] = _compile(lowered)
        if len(_programs) > KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


def fast(function: Callable[..., Any], static: int = 0) -> Callable[..., Any]:
    """`jax.jit` for what is mostly convolutions, compiled as training steps are; the first `static` arguments are. Not for use inside
    another program. Where oneDNN is not used, and for arrays on several devices, it is `jax.jit`."""
    jitted = jax.jit(function, static_argnums=tuple(range(static)))
    programs: dict[Any, jax.stages.Compiled] = {}

    @functools.wraps(function)
    def call(*given: Any) -> Any:
        leaves, tree = jax.tree.flatten(given[static:])
        devices = frozenset(
            device for leaf in leaves if isinstance(leaf, jax.Array) for device in leaf.devices()
        )
        if len(devices) > 1 or not uses_onednn():
            return jitted(*given)
        shapes = tuple((np.shape(leaf), str(getattr(leaf, "dtype", type(leaf)))) for leaf in leaves)
        key = (given[:static], tree, shapes, devices)
        if key not in programs:
            programs[key] = compiled(jitted.lower(*given), devices)
        return programs[key](*given[static:])

    return call


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
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
