"""Tests of reading and editing activations by name, and of `channels`.

Activations that are not read cost nothing. `channels` names the layers around every norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.types import Variables
from d3jax.models import MODELS
from d3jax.models.layers.linen import Activations

from ..helpers.small import NORMS, small_model
from .test_models import INFO, SMALL, TINY

NETS = [*TINY, "small"]
COUNTS = {"preact_resnet18": 16, "resnet": 53, "wide_resnet": 7, "vgg19_bn": 16, "small": 2}
"""Number of BatchNorm layers of each net."""


@pytest.fixture(scope="module", params=NETS)
def net(request):
    """Return a net's name, the net, its variables and two images; no parameter is 0."""
    settings, side = TINY.get(request.param, ({}, 16))
    info = INFO if side == 32 else SMALL
    if request.param == "small":
        model = small_model(info)
    else:
        cls, construct = MODELS[request.param]
        model = construct(cls(**settings), info)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))  # compiling init takes most of the time

    def fill(leaf):
        wide = leaf.ndim > 1
        spread = 1.5 / np.sqrt(np.prod(leaf.shape[:-1])) if wide else 0.1
        return jnp.asarray(spread * rng.normal(size=leaf.shape) + (not wide), jnp.float32)

    params = jax.tree.map(fill, shapes.params)
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes.batch_stats)
    images = jnp.asarray(rng.uniform(size=(2, *info.shape)), jnp.float32)
    return request.param, model, Variables(params, stats), images


def every_second_channel(x):
    """Return an activation with every second channel at 0, which a norm does not undo."""
    return x * (jnp.arange(x.shape[-1]) % 2)


def test_every_named_activation_can_be_read_and_edited(net):
    _, model, variables, images = net
    plain = jax.jit(lambda x: model.apply(variables, x, train=False))(images)
    names = model.activations()
    assert {name: shape.shape for name, shape in names.items()} == {
        name: feature.shape[1:] for name, feature in plain.features.items()
    }
    for name in dict.fromkeys([list(names)[1], list(names)[len(names) // 2], "penultimate"]):
        edited = jax.jit(
            lambda x, name=name: model.apply(
                variables, x, train=False, edit={name: every_second_channel}
            )
        )(images)
        expected = every_second_channel(plain.features[name])
        np.testing.assert_allclose(edited.features[name], expected, rtol=2e-3, atol=2e-3)
        assert np.abs(edited.logits - plain.logits).max() > 1e-6, name


def test_training_statistics_follow_an_edit(net):
    name, model, variables, images = net
    if not variables.batch_stats:
        pytest.skip(f"{name} has no running statistics")
    first = model.channels[0].input
    plain, edited = (
        jax.jit(lambda x, edit=edit: model.apply(variables, x, train=True, edit=edit).batch_stats)(
            images
        )
        for edit in (None, {first: lambda x: x + 3.0})
    )
    place = model.channels[0].path
    for key in place:
        plain, edited = plain[key], edited[key]
    np.testing.assert_allclose(edited["mean"] - plain["mean"], 0.3, rtol=1e-2)


def test_an_unknown_activation_is_refused_by_name(net):
    _, model, variables, images = net

    def apply(images):
        return model.apply(variables, images, train=False, edit={"penultimat": jnp.abs})

    with pytest.raises(ValueError, match="edit: 'penultimat' is no activation.*did you mean"):
        jax.eval_shape(apply, images)


def test_activations_that_are_not_read_do_not_change_the_program(net, monkeypatch):
    """The program has the text of one from a net that keeps no activation."""
    _, model, variables, images = net

    def lowered():
        def loss(params, images):
            outputs = model.apply(Variables(params, variables.batch_stats), images, train=True)
            return outputs.logits.sum(), outputs.batch_stats

        step = jax.jit(lambda *given: jax.value_and_grad(loss, has_aux=True)(*given))
        return step.lower(variables.params, images).as_text()

    with_names = lowered()
    monkeypatch.setattr(Activations, "__call__", lambda self, name, x: x)
    assert lowered() == with_names


def layer(params, path):
    for key in path:
        params = params[key]
    return params


def test_channels_name_the_layers_around_every_norm(net):
    name, model, variables, _ = net
    assert len(model.channels) == COUNTS.get(name, 0)
    names = model.activations()
    for norm in model.channels:
        count = layer(variables.params, norm.path)["scale"].size
        assert layer(variables.batch_stats, norm.path)["var"].size == count
        for path in (*norm.producers, norm.previous):
            assert layer(variables.params, path)["kernel"].shape[-1] == count, norm
        for path in norm.consumers:
            assert layer(variables.params, path)["kernel"].shape[-2] % count == 0, norm
        assert names[norm.input].shape[-1] == names[norm.output].shape[-1] == count


def test_a_channel_without_scale_and_bias_is_zero(net):
    name, model, variables, images = net
    if not model.channels:
        assert name in ("vit", "convnext")
        return
    norm = model.channels[-1]

    def cut(path, leaf):
        keys = tuple(key.key for key in path)
        return leaf.at[..., 1].set(0) if keys[:-1] == norm.path else leaf

    params = jax.tree_util.tree_map_with_path(cut, variables.params)
    silenced = Variables(params, variables.batch_stats)
    run = jax.jit(lambda x: model.apply(silenced, x, train=False).features[norm.output])
    assert not np.any(run(images)[..., 1])


def test_module_order_pairs_a_norm_with_the_shortcut_before_it():
    """CLP's published code pairs a norm with the convolution before it in module order.

    For the second block of a stage, that is the shortcut of the first block.
    """
    cls, construct = MODELS["preact_resnet18"]
    norms = {norm.path: norm for norm in construct(cls(width=4), SMALL).channels}
    second = norms["block2_2", "BatchNorm_0"]
    assert second.previous == ("block2_1", "shortcut") and not second.identity
    assert second.producers == (("block2_1", "Conv_1"), ("block2_1", "shortcut"))
    plain = norms["block1_2", "BatchNorm_0"]
    assert plain.previous == ("block1_1", "Conv_1") and plain.identity
    assert norms["block1_1", "BatchNorm_0"].producers == (("stem",),)
    assert norms["block2_1", "BatchNorm_0"].consumers == (
        ("block2_1", "Conv_0"),
        ("block2_1", "shortcut"),
    )


def test_activations_and_channels_of_a_custom_model_are_optional():
    assert NORMS[0].producers == (("conv0",),)
    from d3jax import Model

    bare = Model(init=lambda key: None, apply=lambda variables, images, *, train: None)
    assert bare.activations is None and bare.channels == ()
