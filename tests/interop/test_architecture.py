"""Tests of the recognition of architectures by the names and shapes of PyTorch's tensors."""

import jax
import numpy as np
import pytest

from d3jax.core.errors import CheckpointError
from d3jax.core.types import DataInfo
from d3jax.interop import to_torch
from d3jax.interop.architecture import SETTINGS, recognise
from d3jax.interop.names import NAMES
from d3jax.models import MODELS

CASES = [
    ("preact_resnet18", {"width": 4}),
    ("resnet", {"depth": 18, "stem": "small", "width": 4}),
    ("resnet", {"depth": 34, "stem": "imagenet", "width": 4}),
    ("resnet", {"depth": 50, "stem": "small", "width": 4}),
    ("wide_resnet", {"depth": 16, "width": 1}),
    ("wide_resnet", {"depth": 22, "width": 2}),
    ("vgg19_bn", {"width": 1, "classifier": "linear"}),
    ("vgg19_bn", {"width": 1, "classifier": "torchvision"}),
    ("vit", {"patch": 8, "width": 128, "depth": 2, "heads": 2, "pool": "mean", "resize": 32}),
    ("vit", {"patch": 8, "width": 64, "depth": 1, "heads": 1, "pool": "token", "resize": 16}),
]


def tensors_of(name, settings, channels, classes):
    """Return tensors of zeros with the names and shapes of an architecture."""
    ones = (1.0,) * channels
    info = DataInfo("some", (32, 32, channels), tuple(map(str, range(classes))), ones, ones)
    config = MODELS[name][0](**settings)
    shapes = jax.eval_shape(config.build(info).init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    return to_torch(zeros, name, config)


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize(("channels", "classes"), [(3, 10), (1, 7)])
def test_an_architecture_is_recognised_with_all_its_settings(name, settings, channels, classes):
    tensors = tensors_of(name, settings, channels, classes)
    wrapped = {f"module.{key}": value for key, value in tensors.items()}
    assert recognise(wrapped, "a file") == (name, settings, channels, classes)


def test_every_architecture_with_names_in_pytorch_is_recognised():
    assert {name for name, _ in CASES} == set(SETTINGS) == set(NAMES)


def test_names_of_no_architecture_are_refused_with_the_choices():
    with pytest.raises(CheckpointError, match=r"a file: its tensors begin a, b; .*wide_resnet"):
        recognise({"a": np.zeros(2), "b": np.zeros(2)}, "a file")
    foreign = {"embeddings.patch_embeddings.x": np.zeros(2), "encoder.layer.0": np.zeros(2)}
    with pytest.raises(CheckpointError, match="by its names it is Hugging Face's ViT"):
        recognise(foreign, "a file")


def test_an_architecture_without_its_last_layer_is_refused():
    tensors = tensors_of("wide_resnet", {"depth": 16, "width": 1}, 3, 10)
    del tensors["fc.weight"]
    with pytest.raises(CheckpointError, match="looks like a wide_resnet, but lacks tensors"):
        recognise(tensors, "a file")
