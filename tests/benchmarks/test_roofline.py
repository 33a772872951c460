"""Tests of the FLOPs and bytes that benchmarks/roofline.py counts in traced programs."""

import functools

import jax
import jax.numpy as jnp
import pytest

from d3jax.models.layers.conv import convolve
from d3jax.models.layers.norm import normalise_batch

BF16, F32 = jnp.bfloat16, jnp.float32


def shaped(*shape, dtype=BF16):
    return jax.ShapeDtypeStruct(shape, dtype)


def passes_of(function, *given):
    import traced

    return traced.passes(traced.program_of(jax.make_jaxpr(function)(*given)))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_reads_and_writes_every_array_once(stride, monkeypatch):
    monkeypatch.setenv("D3JAX_ONEDNN", "0")  # as on a GPU
    images, kernel = shaped(2, 8, 8, 4), shaped(3, 3, 4, 6)
    side = 8 // stride
    x, k, y = 2 * 8 * 8 * 4 * 2, 9 * 4 * 6 * 2, 2 * side * side * 6 * 2
    macs = 2 * side * side * 6 * 9 * 4
    apply = functools.partial(convolve, stride=stride)
    (forward,) = passes_of(apply, images, kernel)
    assert (forward.macs, forward.bytes) == (macs, x + k + y)

    def gradients(x, k, g):
        return jax.vjp(lambda x, k: convolve(x, k, stride), x, k)[1](g)

    both = passes_of(gradients, images, kernel, shaped(2, side, side, 6))
    assert [(one.macs, one.bytes) for one in both] == [(macs, x + k + y)] * 2


def test_batch_norm_between_two_convolutions_needs_four_passes():
    """The first pass sums, and the second normalises; on the way back the same two."""

    def layer(x, scale, bias, kernel):
        y = jax.nn.relu(normalise_batch(x, scale, bias)[0])
        return convolve(y, kernel)

    def gradients(*given):
        y, back = jax.vjp(layer, *given)
        return back(y)

    c, n = 16, 8 * 4 * 4 * 16
    numbers = [shaped(c, dtype=F32)] * 2
    images = shaped(8, 4, 4, c)
    found = passes_of(gradients, images, *numbers, shaped(3, 3, c, c))
    large = [one.bytes for one in found if not one.macs and one.bytes > 2 * n]
    array, number = 2 * n, 4 * c  # bfloat16 images, float32 numbers for every channel
    assert len(large) == 4
    sums, normalise, back_sums, back = large
    assert sums == array + 2 * number  # reads x, writes its sum and that of its squares
    assert normalise == 2 * array + 4 * number  # reads x, two sums, scale and bias; writes y
    # ReLU's gradient needs x again, and so the four numbers.
    assert back_sums == 2 * array + 4 * number + 2 * number
    assert 3 * array < back < 3 * array + 10 * number  # reads x and g, writes x's gradient


def test_a_value_for_two_sums_is_computed_in_one_pass_and_not_written():
    n = 4096
    (one,) = passes_of(lambda x, y: ((x * y).sum(), (x + y).max()), *[shaped(n, dtype=F32)] * 2)
    assert one.bytes == 2 * 4 * n + 2 * 4


def test_a_sum_of_many_arrays_that_others_need_is_written():
    n = 4096

    def program(a, b, c, d):
        total = a + b + c + d
        mean = total.mean()
        return (total - mean).max(), (total * mean).min(), (jnp.exp(total) * mean).sum()

    found = passes_of(program, *[shaped(n, dtype=F32)] * 4)
    assert [one.bytes // (4 * n) for one in found] == [5, 1, 1]


def test_dead_code_and_literals_cost_nothing():
    found = passes_of(lambda x: (jnp.sin(x).sum(), (x + 1.0))[1], shaped(1000, dtype=F32))
    assert [one.bytes for one in found] == [8000]


def test_step_has_the_multiplications_of_three_passes_through_the_net():
    """The committed comparison is that of the present step."""
    import roofline
    import train_step

    width, batch = 64, 512
    program = roofline.step_program(width, batch)
    stem = 32 * 32 * 9 * 3 * width  # images have no gradient
    counted = sum(operation.macs for operation in program.operations)
    assert counted == batch * (3 * train_step.macs(width) - stem)
    found = roofline.bounds(program)
    assert [found[kind].passes for kind in roofline.CONVOLUTIONS] == [20, 19, 20]
    assert [found[kind].passes for kind in roofline.SUMS] == [16, 16]
    weights = 9 * (3 + 4 * width) * width + sum(
        9 * (c * 2 * c + 3 * 4 * c * c) + 2 * c * c for c in (width, 2 * width, 4 * width)
    )
    # Reads bfloat16 gradients, weights and momentum, and writes both; the classifier is float32.
    assert found["optimiser"].bytes == pytest.approx((2 + 4 * 4) * weights, rel=0.01)
    assert found["casts of weights"].bytes == pytest.approx(6 * weights, rel=0.01)
    lines = [*roofline.table(found), "", *roofline.comparison(found, roofline.measured(), 0.4)]
    committed = (roofline.RESULTS / "roofline_h200.txt").read_text(encoding="utf8")
    assert committed.splitlines()[2:] == lines


def test_all_measured_milliseconds_are_in_a_group_of_kernels():
    import json

    import roofline

    spent = roofline.measured()
    rates = json.loads(roofline.THROUGHPUT.read_text())["images_a_second"]["ours/bfloat16"]
    assert sum(spent.values()) == pytest.approx(512e3 / rates["median"])
    assert set(roofline.GROUPS) < set(spent) and all(value > 0 for value in spent.values())
    names = {
        "sm90_xmma_wgrad_indexed_x": "weight gradients",
        "void cutlass::Conv2dWgradActivation": "weight gradients",
        "sm90_xmma_dgrad_x": "input gradients",
        "cutlass_tensorop_bf16_s16816fprop_x": "forward convolutions",
        "input_reduce_fusion_3": "sums",
        "loop_add_fusion": "elementwise",
        "Memset 3": "fills and layout changes",
        "unknown": "kernels without a name",
    }
    assert {name: roofline.group_of(name) for name in names} == names
