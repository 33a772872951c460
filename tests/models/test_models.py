"""Tests of the models: published architectures, and layers that equal Linen's."""

import contextlib
import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.attacks import CleanConfig, make_clean
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo
from d3jax.data import DigitsConfig, make_digits
from d3jax.metrics.attack_success import make_evaluate
from d3jax.models import MODELS, PreActResNet18Config, count_parameters, make_preact_resnet18
from d3jax.models.layers import choice, conv
from d3jax.models.layers.conv import Conv, convolve
from d3jax.models.layers.depthwise import Depthwise
from d3jax.models.layers.norm import EPSILON, MOMENTUM, BatchNorm, normalise_batch
from d3jax.models.vgg import adaptive_mean
from d3jax.runtime.sharding import make_mesh, shard_batch
from d3jax.testing import check_model
from d3jax.training import fit, victim_loop

INFO = DataInfo(
    "cifar10", (32, 32, 3), tuple("abcdefghij"), (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
)
SMALL = DataInfo("small", (16, 16, 1), tuple("abcd"), (0.5,), (0.25,))


def test_preact_resnet18_has_the_published_shape():
    variables = jax.eval_shape(
        make_preact_resnet18(PreActResNet18Config(), INFO).init, jax.random.key(0)
    )
    assert count_parameters(variables.params) == 11_171_146
    means = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables.batch_stats)
        if path[-1].key == "mean"
    ]
    assert len(means) == 16 and sum(leaf.size for leaf in means) == 3392
    assert variables.params["head"]["kernel"].shape == (512, 10)


def parameters(name, info=INFO, **settings):
    cls, construct = MODELS[name]
    return count_parameters(
        jax.eval_shape(construct(cls(**settings), info).init, jax.random.key(0)).params
    )


IMAGENET = DataInfo(
    "imagenet", (224, 224, 3), tuple(map(str, range(1000))), (0.5,) * 3, (0.25,) * 3
)


def test_parameter_counts_are_the_published_ones():
    """The counts are of torchvision's page, the field's CIFAR-10 nets and the code of WRN-d-k.

    torchvision's are of VGG19-BN, ViT-B/16, ConvNeXt-T and the ResNets at 1,000 classes.
    """
    assert parameters("vgg19_bn", IMAGENET) == 143_678_248 and parameters("vgg19_bn") == 139_622_218
    assert (
        parameters("vit", IMAGENET, preset="b16") == 86_567_656
        and parameters("vit", preset="b16") == 85_806_346
    )
    assert (
        parameters("convnext", IMAGENET, preset="tiny") == 28_589_128
        and parameters("convnext", preset="tiny") == 27_827_818
    )
    depths = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032}
    assert {
        depth: parameters("resnet", IMAGENET, depth=depth, stem="imagenet") for depth in depths
    } == depths
    assert parameters("resnet") == 11_173_962
    nets = {(28, 10): 36_479_194, (40, 2): 2_243_546, (16, 4): 2_748_890, (16, 1): 175_066}
    assert {net: parameters("wide_resnet", depth=net[0], width=net[1]) for net in nets} == nets


TINY = {
    "preact_resnet18": ({"width": 4}, 16),
    "vgg19_bn": ({"width": 2}, 32),
    "resnet": ({"width": 4, "depth": 50}, 16),
    "wide_resnet": ({"depth": 10}, 16),
    "vit": ({"width": 12, "depth": 2, "heads": 2}, 16),
    "convnext": ({"width": 4}, 16),
}
"""Settings of a small model of each architecture, and the width of its images in pixels."""


def tiny(name, dtype=jnp.float32):
    settings, side = TINY[name]
    cls, construct = MODELS[name]
    info = SMALL if side == 16 else dataclasses.replace(SMALL, shape=(side, side, 1))
    return construct(cls(**settings), info, dtype), info


@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_the_contract(name):
    """It also has named features, and a classifier at head/kernel that reads `penultimate`."""
    model, info = tiny(name)
    check_model(model, info)
    variables = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (3, *info.shape))
    out = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    head, features = variables.params["head"], out.features
    assert out.logits.shape == (3, 4) and {"penultimate", "block1", "block2"} <= set(features)
    np.testing.assert_allclose(
        out.logits, features["penultimate"] @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5
    )
    assert all(bool(jnp.isfinite(feature).all()) for feature in features.values())
    assert bool(variables.batch_stats) == (
        name in ("preact_resnet18", "resnet", "vgg19_bn", "wide_resnet")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lr", "steps"),
    [
        ("preact_resnet18", 0.05, 250),
        ("vgg19_bn", 0.02, 250),
        ("resnet", 0.05, 250),
        ("wide_resnet", 0.1, 250),
        ("vit", 2e-3, 1000),  # it must learn which patches are neighbours
        ("convnext", 4e-3, 250),
    ],
)
def test_every_model_learns_real_digits(name, lr, steps):
    settings, side = {"vgg19_bn": ({"width": 8}, 32), "vit": ({"width": 48, "depth": 3}, 16)}.get(
        name, ({}, 16)
    )
    settings = (
        settings
        or {
            "preact_resnet18": {"width": 8},
            "resnet": {"width": 8},
            "wide_resnet": {},
            "convnext": {"width": 16},
        }[name]
    )
    data = make_digits(DigitsConfig(size=side))
    cls, construct = MODELS[name]
    model = construct(cls(**settings), data.info)
    optimizer = OptimConfig(
        "sgd" if lr > 0.01 else "adam", lr=lr, weight_decay=5e-4 if lr > 0.01 else 0.0
    )
    loop = victim_loop(
        jax.random.key(0),
        model,
        data,
        None,
        TrainConfig(steps=steps, batch_size=64, optimizer=optimizer),
    )
    state, _ = fit(loop)
    counts = make_evaluate(model, make_clean(CleanConfig(), data.info), 10)(
        state.variables, {}, data.test
    )
    assert counts.acc > 0.9


def test_images_and_settings_that_an_architecture_cannot_take_are_refused():
    for name, settings, words in [
        ("vgg19_bn", {}, "halves images five times, those of small are 16×16; want 32 or more"),
        ("vit", {"patch": 5}, "patches of 5 pixels do not tile images of 16×16"),
        (
            "convnext",
            {"patch": 4},
            "images of 16 pixels in patches of 4 cannot be halved three times; want 32",
        ),
        ("wide_resnet", {"depth": 17}, "depth: 17 is not 6n"),
        ("vit", {"width": 10, "heads": 3}, "heads: 3 do not divide the width of 10"),
    ]:
        cls, construct = MODELS[name]
        with pytest.raises(ConfigError, match=words):
            construct(cls(**settings), SMALL)


def test_adaptive_mean_matches_pytorchs():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    assert adaptive_mean(x, 2)[0, :, :, 0].tolist() == [[2, 3], [5, 6]]
    assert adaptive_mean(x[:, :1, :1], 7).shape == (1, 7, 7, 1)


@pytest.fixture(scope="module")
def narrow():
    model = make_preact_resnet18(PreActResNet18Config(width=4), SMALL)
    return (
        model,
        model.init(jax.random.key(0)),
        jax.random.uniform(jax.random.key(1), (8, 16, 16, 1)),
    )


def test_features_have_their_shapes_and_only_training_changes_statistics(narrow):
    model, variables, images = narrow
    out = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, images)
    shapes = {name: feature.shape for name, feature in out.features.items() if "_" not in name}
    assert shapes == {
        "stem": (8, 16, 16, 4),
        "block1": (8, 16, 16, 4),
        "block2": (8, 8, 8, 8),
        "block3": (8, 4, 4, 16),
        "block4": (8, 2, 2, 32),
        "penultimate": (8, 32),
    }
    assert out.logits.shape == (8, 4) and out.logits.dtype == jnp.float32
    head = variables.params["head"]
    np.testing.assert_allclose(
        out.logits,
        out.features["penultimate"] @ head["kernel"] + head["bias"],
        rtol=1e-5,
        atol=1e-5,
    )
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, out.batch_stats, variables.batch_stats))
    evaluate = jax.jit(lambda v, x: model.apply(v, x, train=False))
    still = evaluate(variables, images)
    chex.assert_trees_all_equal(still.batch_stats, variables.batch_stats)
    np.testing.assert_allclose(
        still.logits[:3], evaluate(variables, images.at[3:].set(0)).logits[:3], rtol=1e-5, atol=1e-5
    )


def test_a_model_normalises_its_images(narrow):
    model, variables, images = narrow
    stem = variables.params["stem"]["kernel"]
    by_hand = jax.lax.conv_general_dilated(
        (images - 0.5) / 0.25,
        stem,
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    zeroed = jax.tree.map(jnp.zeros_like, variables.params) | {"stem": variables.params["stem"]}
    out = model.apply(variables._replace(params=zeroed), images, train=False)
    np.testing.assert_allclose(out.features["block1"], by_hand, rtol=1e-4, atol=1e-5)


def test_initialisation_matches_pytorchs(narrow):
    _, variables, _ = narrow
    kernel = variables.params["block4_2"]["Conv_0"]["kernel"]  # [3, 3, 32, 32]
    bound = (9 * 32) ** -0.5
    assert abs(float(jnp.abs(kernel).max()) - bound) < 0.01 * bound
    assert abs(float(kernel.std()) - bound / 3**0.5) < 0.05 * bound


@pytest.mark.parametrize("name", MODELS)
def test_every_model_computes_in_bfloat16_with_float32_parameters(name):
    model, info = tiny(name, jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True), variables, jnp.zeros((2, *info.shape))
    )
    assert (
        out.features["block2"].dtype == jnp.bfloat16
        and out.features["penultimate"].dtype == jnp.float32
    )
    assert out.logits.dtype == jnp.float32 and {
        leaf.dtype for leaf in jax.tree.leaves(out.batch_stats)
    } <= {jnp.dtype("float32")}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_compiled_logits_in_bfloat16_are_close_to_those_in_float32(name, train):
    """jaxlib 0.11.2 made them NaN where it fused convolutions with what follows them."""
    images = jax.random.uniform(jax.random.key(1), (8, *tiny(name)[1].shape))
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model, _ = tiny(name, dtype)
        variables = model.init(jax.random.key(0))
        compiled = jax.jit(lambda v, x, model=model: model.apply(v, x, train=train).logits)
        found.append(compiled(variables, images))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=0.2 * float(jnp.ptp(found[0])))


SHAPES = [
    (3, 8, 8, 3, 8),
    (2, 7, 7, 8, 8),
    (3, 1, 2, 4, 8),
    (2, 4, 32, 6, 8),
    (2, 6, 10, 40, 40),
    (4, 4, 4, 96, 128),
    (7, 14, 14, 4, 8),
]


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        *((shape, 3, 1) for shape in SHAPES),
        *(
            (shape, 3, 2) for shape in SHAPES[:4]
        ),  # even and odd sides, one pixel high, and wide enough for `input_gradient_by_phases`
        *((SHAPES[1], size, stride) for size, stride in [(1, 1), (1, 2), (5, 1)]),
        (SHAPES[0], 1, 2),
    ],
)
def test_fast_convolution_equals_linens(shape, size, stride):
    b, h, w, c, d = shape
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(keys[0], (b, h, w, c)),
        jax.random.normal(keys[1], (size, size, c, d)),
    )
    net = nn.Conv(d, (size, size), stride, padding=size // 2, use_bias=False)

    def linen(x, kernel):
        return net.apply({"params": {"kernel": kernel}}, x)

    g = jax.random.normal(keys[2], linen(x, kernel).shape)
    both = jax.jit(
        lambda f, x, kernel, g: (f(x, kernel), *jax.vjp(f, x, kernel)[1](g)), static_argnums=0
    )
    fast = functools.partial(convolve, stride=stride)
    for mine, theirs in zip(both(fast, x, kernel, g), both(linen, x, kernel, g), strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(mine / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8, 8, 4), (2, 3, 5, 1), (4, 1, 9, 6)])
@pytest.mark.parametrize("devices", [1, 2])
def test_depthwise_convolution_equals_linens(shape, devices):
    keys = jax.random.split(jax.random.key(1), 3)
    x, g = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], shape)
    fast, linen = Depthwise(7), nn.Conv(shape[3], (7, 7), feature_group_count=shape[3])
    params = jax.tree.map(
        lambda leaf: leaf + jax.random.normal(keys[2], leaf.shape), linen.init(keys[2], x)
    )
    assert jax.tree.map(jnp.shape, fast.init(keys[2], x)) == jax.tree.map(jnp.shape, params)

    @functools.partial(jax.jit, static_argnums=0)
    def both(net, params, x, g):
        y, back = jax.vjp(net.apply, params, shard_batch(x))
        return y, *back(g)

    mesh = make_mesh(1, jax.devices()[:devices])
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        mine = both(fast, params, x, g)
    for one, other in zip(
        jax.tree.leaves(mine), jax.tree.leaves(both(linen, params, x, g)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_weight_gradient_is_summed_over_chunks(monkeypatch):
    """Twelve images give one result in chunks of one, of four and all at once.

    A batch of prime size is one chunk, or has one chunk for each image.
    """
    x, g = (jax.random.normal(jax.random.key(i), (12, 6, 6, 4)) for i in range(2))
    found = []
    for chunk in (1, 1 << 14, 1 << 30):
        monkeypatch.setattr(choice, "CHUNK", chunk)
        found.append(conv.weight_gradient(x, g, size=3, stride=1))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(choice, "CHUNK", 1000)
    monkeypatch.setattr(choice, "uses_onednn", lambda: True)
    assert [choice.chunks_at_once(chunks, 1 << 20) for chunks in (12, 6, 3)] == [4, 2, 1]
    assert [choice.chunks_at_once(12, size << 20) for size in (2, 3, 9)] == [2, 1, 1]
    monkeypatch.setattr(choice, "uses_onednn", lambda: False)
    assert choice.chunks_at_once(12, 1) == 1
    assert [choice.images_a_chunk(12, size, 36, 12) for size in (1, 250, 2000)] == [12, 4, 1]
    assert (
        choice.images_a_chunk(127, 100, 36, 12) == 1 and choice.images_a_chunk(12, 2000, 1, 18) == 6
    )


@pytest.mark.parametrize(
    ("size", "stride", "side"), [(3, 1, 16), (3, 2, 16), (1, 2, 16), (1, 2, 15)]
)
@pytest.mark.parametrize("cpu", ["plain", "onednn", "amx"])
def test_gradients_in_bfloat16_equal_plain_ones_in_float32(size, stride, side, cpu, monkeypatch):
    """The error is at most a hundredth of the largest entry, in every form that a rule chooses."""
    monkeypatch.setattr(choice, "uses_onednn", lambda: cpu != "plain")
    monkeypatch.setattr(choice, "has_amx", lambda: cpu == "amx")
    keys, small = jax.random.split(jax.random.key(0), 3), -(-side // stride)
    x = jax.random.normal(keys[0], (16, side, side, 8))
    kernel = jax.random.normal(keys[1], (size, size, 8, 12)) / size**2
    g = jax.random.normal(keys[2], (16, small, small, 12))

    def gradients(dtype, convolution):
        cast = [array.astype(dtype) for array in (x, kernel, g)]
        return jax.vjp(lambda x, k: convolution(x, k, stride), *cast[:2])[1](cast[2])

    ours = gradients(jnp.bfloat16, convolve)
    for mine, plain in zip(ours, gradients(jnp.float32, conv._native), strict=True):
        scale = float(jnp.abs(plain).max())
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            mine.astype(jnp.float32) / scale, plain / scale, atol=1e-2, rtol=0
        )


def test_no_rule_for_cpu_changes_a_program_for_another_backend(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = jnp.ones((32, 32, 32, 16)), jnp.ones((3, 3, 16, 16))

    def program(convolution, stride):
        def loss(x, kernel):
            return (convolution(x, kernel, stride) ** 2).sum()

        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return sorted(
            re.findall(r"stablehlo\.(convolution|dot_general|while|pad|concatenate)", text)
        )

    for stride in (1, 2):
        assert program(convolve, stride) == program(conv._native, stride) == ["convolution"] * 3
    monkeypatch.undo()
    assert "while" in jax.jit(jax.grad(lambda k: convolve(x, k).sum())).lower(kernel).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fast_batch_norm_equals_linens(dtype):
    """Output, running statistics, gradients, and evaluation from those statistics are equal.

    The inputs have means far from 0.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 + 2 * jax.random.normal(keys[0], (4, 5, 6, 7)) * jnp.arange(1, 8)).astype(dtype)
    params = {"scale": jax.random.normal(keys[1], (7,)), "bias": jax.random.normal(keys[2], (7,))}
    g = jax.random.normal(keys[3], x.shape)

    def run(make, params, x):
        start = {
            "params": params,
            "batch_stats": {"mean": jnp.full(7, 0.5), "var": jnp.full(7, 2.0)},
        }
        y, new = make(True).apply(start, x, mutable=["batch_stats"])
        return (y.astype(jnp.float32) * g).sum(), (y, new, make(False).apply(start | new, x))

    mine, theirs = (
        jax.value_and_grad(functools.partial(run, make), argnums=(0, 1), has_aux=True)(params, x)
        for make in (
            functools.partial(BatchNorm, dtype=dtype),
            lambda train: nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype),
        )
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(mine, theirs)
    chex.assert_trees_all_close(
        mine,
        theirs,
        rtol=1e-4 if dtype == jnp.float32 else 0.05,
        atol=1e-4 if dtype == jnp.float32 else 0.1,
    )


def test_gradients_of_batch_statistics_match_the_plain_formulas():
    """Mean and variance are outputs of `normalise_batch`, so a loss may consist of them alone."""
    x, weights = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(6, 3, 3, 4), (2, 4)])
    )

    def loss(mean, var):
        return (weights[0] * mean + weights[1] * var**2).sum()

    mine = jax.grad(lambda x: loss(*normalise_batch(x, jnp.ones(4), jnp.zeros(4))[1:]))(x)
    plain = jax.grad(lambda x: loss(x.mean((0, 1, 2)), x.var((0, 1, 2))))(x)
    np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)


def test_strided_convolution_has_pytorchs_geometry():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    out = Conv(1, 3, 2).apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, x)
    assert out[0, :, :, 0].tolist() == [
        [0 + 1 + 4 + 5, 1 + 2 + 3 + 5 + 6 + 7],
        [4 + 5 + 8 + 9 + 12 + 13, 5 + 6 + 7 + 9 + 10 + 11 + 13 + 14 + 15],
    ]
