"""Tests of compilation with oneDNN, and of the compiled programs that are kept.

oneDNN is used where jaxlib has it, and gives the numbers of XLA's own kernels.
"""

import importlib.metadata
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.models.layers.conv import convolve
from d3jax.runtime import compilation as compiling


@pytest.fixture
def probe():
    """Forget what was found out about oneDNN, before and after a test."""
    compiling.has_onednn.cache_clear()
    yield
    compiling.has_onednn.cache_clear()


def test_onednn_is_found_by_compiling_a_convolution(probe, monkeypatch):
    release = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    intel = platform.machine() in ("x86_64", "AMD64")
    assert compiling.uses_onednn() == (release >= (0, 11) and intel)
    monkeypatch.setenv("D3JAX_ONEDNN", "0")
    assert not compiling.uses_onednn() and compiling.without_onednn() == ""


def test_a_release_that_lacks_the_options_is_used_without_onednn_and_says_so(probe, monkeypatch):
    monkeypatch.setattr(compiling, "ONEDNN", {"xla_cpu_no_such_option": True})
    monkeypatch.setattr(compiling.importlib.metadata, "version", lambda name: "0.99.0")
    monkeypatch.setattr(compiling.platform, "machine", lambda: "x86_64")
    assert not compiling.uses_onednn()
    assert "jaxlib 0.99.0 has no oneDNN, so training takes" in compiling.without_onednn()
    monkeypatch.setattr(compiling.platform, "machine", lambda: "aarch64")
    assert compiling.without_onednn() == ""


@pytest.mark.parametrize(
    ("flags", "precision", "advice"),
    [
        ({"avx512f", "avx512_bf16", "amx_bf16"}, "float32", "precision: bfloat16 would train"),
        ({"avx512f", "avx512_bf16", "amx_bf16"}, "bfloat16", ""),
        ({"avx512f", "avx512_bf16"}, "float32", ""),
        ({"avx512f", "avx512_bf16"}, "bfloat16", ""),
        ({"avx512f"}, "float32", ""),
        ({"avx512f"}, "bfloat16", "precision: float32 would train"),
        (None, "float32", ""),
        (None, "bfloat16", ""),
    ],
)
def test_the_advice_names_the_faster_precision_of_this_cpu(flags, precision, advice, monkeypatch):
    monkeypatch.setattr(compiling, "uses_onednn", lambda: True)
    monkeypatch.setattr(compiling, "_cpu_flags", lambda: flags)
    said = compiling.precision_advice(precision)
    assert advice in said and bool(said) == bool(advice)


@pytest.mark.parametrize("stride", [1, 2])
def test_onednn_gives_the_same_numbers_and_restores_the_cache_setting(stride, tmp_path):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(keys[0], (16, 32, 32, 16)),
        jax.random.normal(keys[1], (3, 3, 16, 32)),
    )
    g = jax.random.normal(keys[2], (16, 32 // stride, 32 // stride, 32))

    def both(x, kernel, g):
        y, back = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
        return y, *back(g)

    lowered = jax.jit(both).lower(x, kernel, g)
    program = compiling.compiled(lowered)
    assert ("__onednn" in program.as_text()) == compiling.uses_onednn()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0  # as set in conftest
    for mine, plain in zip(program(x, kernel, g), lowered.compile()(x, kernel, g), strict=True):
        scale = float(jnp.abs(plain).max())
        np.testing.assert_allclose(mine / scale, plain / scale, atol=1e-5)


def test_compiled_programs_are_kept_up_to_a_limit():
    def lowered(constant):
        return jax.jit(lambda x: {"y": x + jnp.arange(100) * constant}).lower(jnp.zeros(100))

    device = jax.devices()[:1]
    program = compiling.compiled(lowered(2), device)
    assert compiling.compiled(lowered(2), device) is program
    assert compiling.compiled(lowered(3), device)(jnp.zeros(100))["y"][1] == 3
    assert compiling.compiled(lowered(2), jax.devices()[1:2]) is not program
    for constant in range(4, 5 + compiling.KEPT):
        compiling.compiled(lowered(constant), device)
    assert (
        len(compiling._programs) == compiling.KEPT
        and compiling.compiled(lowered(2), device) is not program
    )


def test_programs_differ_by_the_shapes_of_unused_arguments_too():
    program = {
        size: compiling.compiled(jax.jit(lambda x, y: x + 1).lower(1.0, jnp.zeros(size)))
        for size in (2, 3)
    }
    assert (
        all(program[size](1.0, jnp.zeros(size)) == 2 for size in (2, 3))
        and program[2] is not program[3]
    )


def test_fast_compiles_once_per_shape_type_and_static_argument(monkeypatch):
    """Arrays are on the host, on a device or on several, and the first argument is static."""
    made = []
    compiled = compiling.compiled
    monkeypatch.setattr(compiling, "uses_onednn", lambda: True)
    monkeypatch.setattr(compiling, "_compile", lambda lowered: lowered.compile())
    monkeypatch.setattr(
        compiling, "compiled", lambda *given: made.append(given) or compiled(*given)
    )
    call = compiling.fast(
        lambda name, x, y: {name: x.sum() + (0 if y is None else y["a"].sum())}, static=1
    )
    ones = np.ones(5, np.float32)
    assert (
        float(call("sum", ones, None)["sum"])
        == float(call("sum", 2 * jnp.asarray(ones), None)["sum"]) / 2
        == 5
    )
    assert (
        float(call("sum", ones, {"a": ones})["sum"]) == 10
        and float(call("more", ones, None)["more"]) == 5
    )
    assert float(call("sum", np.ones(6, np.uint8), None)["sum"]) == 6
    assert len(made) == 5  # host and device arrays count separately
    mesh = jax.sharding.Mesh(jax.devices()[:2], "x")
    there = jax.device_put(
        np.ones(4), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    )
    assert float(call("sum", there, None)["sum"]) == 4 and len(made) == 5
