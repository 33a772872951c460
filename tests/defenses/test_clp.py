"""Tests of CLP: singular values, Lipschitz bounds in both pairings, and the pruned channels."""

import jax
import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.core.types import Model, Variables
from d3jax.defenses import clp
from d3jax.defenses.repair.clp import lipschitz, outlying, singular_values
from d3jax.defenses.repair.pruning import layer_at, silence
from d3jax.models import preact_resnet18

from ..models.test_models import SMALL


@pytest.fixture(scope="module")
def net():
    model = preact_resnet18(width=4).build(SMALL)
    return model, jax.device_get(model.init(jax.random.key(0)))


def test_singular_values_of_hand_made_kernels_are_exact():
    kernel = np.zeros((3, 3, 2, 2))
    kernel[0, 0, 0, 0], kernel[1, 1, 1, 0] = 3.0, 4.0  # two places, two inputs: σ = 4 and 3
    kernel[0, 0, 0, 1], kernel[1, 1, 0, 1] = 3.0, 4.0  # two places, one input: σ = 5
    np.testing.assert_allclose(singular_values(kernel), [4.0, 5.0])


def changed(variables, path, **parts):
    """Return a copy of the variables with other parameters or statistics in one layer."""

    def put(tree, names):
        copy = jax.tree.map(np.array, tree)
        for name in names:
            layer_at(copy, path)[name][:] = parts[name]
        return copy

    params, stats = (
        put(tree, [name for name in parts if name in known])
        for tree, known in zip(variables, (("scale", "bias", "kernel"), ("var",)), strict=True)
    )
    return Variables(params, stats)


def test_bounds_scale_with_gamma_over_the_deviation_of_the_norm_layer(net):
    model, variables = net
    norm = model.channels[1]  # only one convolution feeds it
    plain = lipschitz(variables, norm, "producer")
    kernel = layer_at(variables.params, norm.producers[0])["kernel"]
    np.testing.assert_allclose(plain, singular_values(kernel))
    moved = changed(variables, norm.path, scale=-2.0, var=4.0)
    np.testing.assert_allclose(lipschitz(moved, norm, "producer"), plain)
    np.testing.assert_allclose(lipschitz(moved, norm, "module_order"), plain)


def test_bounds_of_several_producers_add_up_and_module_order_takes_the_shortcut(net):
    model, variables = net
    norms = {norm.path: norm for norm in model.channels}
    norm = norms["block2_2", "BatchNorm_0"]
    parts = [
        singular_values(layer_at(variables.params, ("block2_1", name))["kernel"])
        for name in ("Conv_1", "shortcut")
    ]
    np.testing.assert_allclose(lipschitz(variables, norm, "producer"), sum(parts))
    np.testing.assert_allclose(lipschitz(variables, norm, "module_order"), parts[1])
    plain = norms["block1_2", "BatchNorm_0"]
    kernel = layer_at(variables.params, ("block1_1", "Conv_1"))["kernel"]
    np.testing.assert_allclose(lipschitz(variables, plain, "producer"), singular_values(kernel) + 1)


def test_outliers_lie_u_unbiased_deviations_above_the_mean():
    bounds = np.array([1.0] * 15 + [9.0])  # mean 1.5, deviation 2: (9 − 1.5) / 2 = 3.75
    assert outlying(bounds, 3.7).tolist() == [False] * 15 + [True]
    assert not outlying(bounds, 3.8).any()


@pytest.mark.parametrize("pairing", ["producer", "module_order"])
def test_only_the_outlying_channel_is_pruned(net, pairing):
    model, variables = net
    norm = model.channels[-1]  # its producer feeds no other layer
    kernel = np.array(layer_at(variables.params, norm.producers[0])["kernel"])
    kernel[..., 3] *= 50
    planted = changed(variables, norm.producers[0], kernel=kernel)
    # One of 32 channels lies at most 31/√32 = 5.5 deviations above the mean; this one lies 5.4.
    repair = clp(pairing=pairing, u=5.0).build(SMALL).repair
    repaired = repair(jax.random.key(0), model, planted, None)
    after = layer_at(repaired.variables.params, norm.path)
    assert not after["scale"][3] and not after["bias"][3]
    assert np.count_nonzero(after["scale"]) == len(after["scale"]) - 1
    assert repaired.trace["pruned"].tolist() == [1]
    others = silence(planted.params, {norm.path: np.arange(32) == 3})
    jax.tree.map(np.testing.assert_array_equal, repaired.variables.params, others)


def test_a_model_without_channels_is_refused():
    with pytest.raises(ConfigError, match="this model names none"):
        clp().build(SMALL).check(Model(None, None), None, 10)
