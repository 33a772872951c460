"""Tests of the choice of activations by name."""

import pytest

from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo
from d3jax.defenses.activations import check_map, convolutions_of, maps_of
from d3jax.models import PreActResNet18Config, VGG19BNConfig, ViTConfig, WideResNetConfig

INFO = DataInfo("ten", (32, 32, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)


def test_convolutions_are_in_the_order_of_the_network(fixture):
    assert convolutions_of(fixture.model, fixture.dataset.info) == ("conv0", "conv1")
    found = convolutions_of(PreActResNet18Config(width=2).build(INFO), INFO)
    assert len(found) == 16 and found[0] == "block1_1/conv1"
    assert found[-4:-1] == ("block4_1/conv1", "block4_1/conv2", "block4_2/conv1")
    assert len(convolutions_of(WideResNetConfig().build(INFO), INFO)) == 12
    assert (
        convolutions_of(VGG19BNConfig(width=1, classifier="linear").build(INFO), INFO)[-1]
        == "conv5_4"
    )


def test_a_model_without_convolutions_has_all_its_maps(fixture):
    tokens = ViTConfig(depth=1, width=8, heads=2).build(INFO)
    assert convolutions_of(tokens, INFO) == maps_of(tokens, INFO)
    assert maps_of(tokens, INFO)[0] == "tokens" and "penultimate" not in maps_of(tokens, INFO)
    assert maps_of(fixture.model, fixture.dataset.info)[-1] == "out1"


def test_other_names_and_models_without_activations_are_refused(fixture):
    info = fixture.dataset.info
    check_map("out1", fixture.model, info, "layer")
    with pytest.raises(ConfigError, match="layer: 'out2' is no activation .*did you mean"):
        check_map("out2", fixture.model, info, "layer")
    with pytest.raises(ConfigError, match="layer: 'penultimate' is no activation of more than one"):
        check_map("penultimate", fixture.model, info, "layer")
    with pytest.raises(ConfigError, match="this model names no activations"):
        maps_of(fixture.model._replace(activations=None), info)
