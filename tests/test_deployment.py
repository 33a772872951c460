"""Tests of models in one file: a repaired network loads alone and gives the same logits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import load_model
from d3jax.config.study import Choice
from d3jax.core.errors import CheckpointError, ConfigError
from d3jax.core.types import DataInfo
from d3jax.defenses import NABConfig, NPDConfig, PDBConfig, UNITConfig
from d3jax.deployment import write_model
from d3jax.interop import read_tensors, write_tensors
from d3jax.interop.external_model import ABOUT, read_external_model
from d3jax.models import WideResNetConfig

INFO = DataInfo("some", (16, 16, 3), ("a", "b", "c"), (0.4,) * 3, (0.2,) * 3, 2, True)
NET = Choice("wide_resnet", "wide_resnet", WideResNetConfig(depth=10))
GOOD = {
    "model": {"name": "wide_resnet", "settings": {"depth": 10, "width": 1}},
    "defense": None,
    "info": {"name": "some", "shape": [16, 16, 3], "classes": ["a", "b", "c"]}
    | {"mean": [0.4] * 3, "std": [0.2] * 3},
}
"""The description of a network in a file."""
REPAIRS = {"unit": UNITConfig(), "npd": NPDConfig(), "pdb": PDBConfig(), "nab": NABConfig()}


def network_of(repair):
    plain = NET.config.build(INFO)
    return REPAIRS[repair].build(INFO).network(plain) if repair else plain


def written(path, repair):
    """Write a network with random variables, of which none is at its initial value."""
    variables = network_of(repair).init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    changed = [jnp.asarray(rng.uniform(0.1, 0.4, leaf.shape), leaf.dtype) for leaf in leaves]
    variables = jax.tree.unflatten(tree, changed)
    choice = Choice(repair, repair, REPAIRS[repair]) if repair else None
    write_model(path, variables, NET, INFO, choice)
    return variables


@pytest.mark.parametrize("repair", ["", *REPAIRS])
def test_a_file_loads_alone_and_gives_the_same_logits(tmp_path, repair):
    variables = written(tmp_path / "model.safetensors", repair)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.info == INFO
    images = np.random.default_rng(1).uniform(size=(4, 16, 16, 3)).astype(np.float32)
    want, found = (
        model.apply(each, images, train=False).logits
        for model, each in ((network_of(repair), variables), (loaded.model, loaded.variables))
    )
    np.testing.assert_array_equal(found, want)
    assert np.ptp(want) > 0


@pytest.mark.parametrize("repair", ["unit", "pdb"])
def test_a_study_refuses_a_model_whose_network_a_defence_changed(tmp_path, repair):
    written(tmp_path / "model.safetensors", repair)
    choice = dataclasses.replace(NET, checkpoint=str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match=f"defence {repair} changed the network"):
        read_external_model(choice, network_of(""))


def test_the_tensors_of_the_architecture_have_pytorchs_names(tmp_path):
    written(tmp_path / "model.safetensors", "unit")
    tensors = read_tensors(tmp_path / "model.safetensors")
    assert tensors["fc.weight"].shape == (3, 64)
    more = [name for name in tensors if name.startswith("more.")]
    assert more and all(name.startswith("more.params.caps") for name in more)


def test_a_file_that_does_not_say_its_network_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"fc.weight": np.zeros((3, 64), np.float32)})
    with pytest.raises(CheckpointError, match="does not say which network it is of"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": {"name": "wide_resnets", "settings": {}}}, ConfigError, "is not one of"),
        ({"info": {"name": "some"}}, CheckpointError, "description of the network is damaged"),
        ({"model": None}, CheckpointError, "description of the network is damaged"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, change, error, message):
    path = tmp_path / "model.safetensors"
    written(path, "")
    write_tensors(path, read_tensors(path), {ABOUT: json.dumps(GOOD)})
    assert load_model(path).info.shape == (16, 16, 3)
    write_tensors(path, read_tensors(path), {ABOUT: json.dumps(GOOD | change)})
    with pytest.raises(error, match=message):
        load_model(path)


@pytest.mark.parametrize(
    "name", ["more.params.other", "more.batch_stats.block1_1.BatchNorm_0.mean"]
)
def test_tensors_that_the_network_lacks_are_named(tmp_path, name):
    path = tmp_path / "model.safetensors"
    written(path, "")
    other = {name: np.zeros(1, np.float32)}
    write_tensors(path, read_tensors(path) | other, {ABOUT: json.dumps(GOOD)})
    with pytest.raises(CheckpointError, match=f"the network has no such tensors: {name}"):
        load_model(path)


def test_missing_tensors_of_the_repair_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    written(path, "unit")
    about = GOOD | {"defense": {"name": "unit", "settings": {}}}
    kept = {
        name: value for name, value in read_tensors(path).items() if not name.startswith("more.")
    }
    write_tensors(path, kept, {ABOUT: json.dumps(about)})
    with pytest.raises(CheckpointError, match="lacks tensors of the repaired network: params.caps"):
        load_model(path)
