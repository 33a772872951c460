"""Compilation of training steps and evaluation: shared between equal programs, and oneDNN on CPU.

jaxlib 0.11 contains oneDNN but does not use it by default. On two AVX-512 cores, oneDNN runs the
convolutions of PreActResNet18 at 150–265 GFLOP/s, against 60–170 without it. A step at width 16 and
batch 128 takes 293 ms instead of 420.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.types import Device

ONEDNN = {
    "xla_cpu_experimental_onednn_custom_call": True,
    # Without this option YNNPACK would take the convolutions before oneDNN can.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


def uses_onednn() -> bool:
    """Return whether train steps are compiled with oneDNN on this machine.

    `D3JAX_ONEDNN=0` in the environment turns it off.
    """
    return jax.default_backend() == "cpu" and os.environ.get("D3JAX_ONEDNN") != "0" and has_onednn()


@functools.cache
def has_onednn() -> bool:
    """Return whether this jaxlib compiles a small convolution on CPU to a call of oneDNN.

    That of jaxlib 0.10 does not, those of 0.11 and 0.12 do. It is tried and not looked up, because
    a later release may lose the options, and an unknown option is an error.
    """
    images = jax.ShapeDtypeStruct((4, 8, 8, 16), np.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
        dimension_numbers=layout,
    )  # fmt: skip
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            program = _compile_with_onednn(jax.jit(convolve).lower(images, kernel))
    except (jax.errors.JaxRuntimeError, ValueError):  # an option that this jaxlib does not know
        return False
    return "__onednn" in (program.as_text() or "")


def has_amx() -> bool:
    """Return whether this CPU has AMX units for bfloat16 products, by the flags of the kernel."""
    return "amx_bf16" in (_cpu_flags() or ())


@functools.cache
def _cpu_flags() -> frozenset[str] | None:
    """Return the flags that the kernel lists for this CPU; None if it lists none."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return frozenset(flags[1].split()) if flags else None


def without_onednn() -> str:
    """Return a line that says that this CPU trains slower for want of oneDNN; "" if not."""
    intel = platform.machine() in ("x86_64", "AMD64")
    wanted = jax.default_backend() == "cpu" and intel and os.environ.get("D3JAX_ONEDNN") != "0"
    if not wanted or has_onednn():
        return ""
    release = importlib.metadata.version("jaxlib")
    return (
        f"jaxlib {release} has no oneDNN, so training takes about 1.4 times as long on this CPU as "
        "with jaxlib 0.11 or 0.12, which need Python 3.12"
    )


def precision_advice(precision: str) -> str:
    """Return a line that says that the other precision is faster on this CPU; "" if it is not."""
    if not uses_onednn():
        return ""
    if precision == "float32" and has_amx():
        return (
            "this CPU has AMX, so precision: bfloat16 would train 1.6 to 3 times as fast; its "
            "numbers differ a little"
        )
    flags = _cpu_flags()
    if precision == "bfloat16" and flags is not None and "avx512_bf16" not in flags:
        return (
            "this CPU has no bfloat16 instructions, so precision: float32 would train about 1.6 "
            "times as fast"
        )
    return ""


KEPT = 32
"""The number of compiled programs that are kept for reuse.

A later train loop of a study often needs the same program for other seeds, rates or numbers.
"""

_programs: collections.OrderedDict[Any, jax.stages.Compiled] = collections.OrderedDict()


def compiled(lowered: jax.stages.Lowered, devices: Iterable[Device] = ()) -> jax.stages.Compiled:
    """Compile a lowered JAX program, or return the program compiled earlier for an equal one.

    On CPU it is compiled with oneDNN where `uses_onednn` says so.
    """
    text = hashlib.sha256(lowered.as_text().encode()).hexdigest()  # has all constants
    given = tuple(jax.tree.leaves(lowered.in_avals))  # the text leaves out unused arguments
    key = (text, given, uses_onednn(), lowered.in_tree, lowered.out_tree, frozenset(devices))
    if key not in _programs:
        _programs[key] = _compile(lowered)
        if len(_programs) > KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


def fast(function: Callable[..., Any], static: int = 0) -> Callable[..., Any]:
    """Compile a function as `jax.jit` does, but with oneDNN on CPU where training steps use oneDNN.

    It is meant for functions that mostly consist of convolutions. The first `static` arguments are
    static. The result must not be called inside another compiled program. Without oneDNN, and
    for arrays on several devices, it is the same as `jax.jit`.
    """
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
    return _compile_with_onednn(lowered) if uses_onednn() else lowered.compile()


def _compile_with_onednn(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    # jaxlib 0.11.2 runs out of memory when it writes a oneDNN call to the compilation cache. The
    # infinite threshold keeps these programs out of the cache.
    least = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, least)
    jax.config.update(least, math.inf)
    try:
        return lowered.compile(ONEDNN)
    finally:
        jax.config.update(least, before)
