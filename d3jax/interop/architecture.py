"""Recognition of an architecture and its settings by the names and shapes of PyTorch's tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import CheckpointError, names
from .names import IGNORED, PREFIXES, SIGNS

HEADS = ("fc", "linear", "classifier", "classifier.6", "heads.head", "heads.0")
"""The names that a net's last linear layer may have in PyTorch."""


class Architecture(NamedTuple):
    """An architecture as a model file shows it.

    `name` and `settings` are as in a config. `channels` is the number of channels of an image, and
    `classes` the number of classes.
    """

    name: str
    settings: dict[str, Any]
    channels: int
    classes: int


def unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a file's weight tensors, without the prefixes that wrappers put before every name."""
    found = {name: value for name, value in tensors.items() if not name.endswith(IGNORED)}
    stripped = True
    while stripped and found:
        stripped = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in found):
                found, stripped = (
                    {name.removeprefix(prefix): value for name, value in found.items()},
                    True,
                )
    return found


def looks_like(tensors: Mapping[str, Any]) -> str:
    """Return the architecture that the names of tensors suggest, or "" if none does."""
    fitting = (
        name
        for name, signs in SIGNS
        if all(any(there.startswith(sign) for there in tensors) for sign in signs)
    )
    return next(fitting, "")


def recognise(tensors: Mapping[str, np.ndarray], origin: str) -> Architecture:
    """Return the `Architecture` of the net whose weights these are, under PyTorch's names.

    The number of heads of a vision transformer cannot be seen. It is taken as one for every 64
    dimensions, as in all published sizes. Raises `CheckpointError`, which begins with `origin`, if
    the names are not those of an architecture that d3jax reads.
    """
    found = unwrapped(tensors)
    name = looks_like(found)
    if name not in SETTINGS:
        looks = f"by its names it is {name}" if name else f"its tensors begin {names([*found][:3])}"
        raise CheckpointError(
            f"{origin}: {looks}; the architectures that are recognised are {names(SETTINGS)}"
        )
    try:
        stem = found[STEMS.get(name, "conv1.weight")]
        head = next(found[f"{one}.weight"] for one in HEADS if f"{one}.weight" in found)
        return Architecture(name, SETTINGS[name](found), stem.shape[1], head.shape[0])
    except (KeyError, StopIteration, IndexError) as error:
        raise CheckpointError(f"{origin}: looks like a {name}, but lacks tensors of it") from error


STEMS = {"vgg19_bn": "features.0.weight", "vit": "conv_proj.weight"}
"""The name of the first convolution by architecture, where it is not conv1.weight."""


def _count(found: Mapping[str, Any], pattern: str) -> int:
    """Return how many different texts the group of a pattern matches at the beginning of names."""
    matches = (re.match(pattern, name) for name in found)
    return len({match[1] for match in matches if match})


def _preact_resnet18(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {"width": len(found["conv1.weight"])}


def _resnet(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    stem = found["conv1.weight"]
    depth = 34 if _count(found, r"layer1\.(\d+)\.") > 2 else 18
    return {
        "depth": 50 if "layer1.0.conv3.weight" in found else depth,
        "stem": "imagenet" if stem.shape[-1] == 7 else "small",
        "width": len(stem),
    }


def _wide_resnet(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    width = len(found["block1.layer.0.conv1.weight"]) // 16
    return {"depth": 6 * _count(found, r"block1\.layer\.(\d+)\.") + 4, "width": width}


def _vgg19_bn(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    classifier = "linear" if "classifier.weight" in found else "torchvision"
    return {"width": len(found["features.0.weight"]), "classifier": classifier}


def _vit(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    width, _, patch, _ = found["conv_proj.weight"].shape
    token = "class_token" in found
    tokens = found["encoder.pos_embedding"].shape[-2] - token
    return {
        "patch": patch,
        "width": width,
        "depth": _count(found, r"encoder\.layers\.encoder_layer_(\d+)\."),
        "heads": max(1, width // 64),
        "pool": "token" if token else "mean",
        "resize": patch * round(tokens**0.5),
    }


SETTINGS: dict[str, Callable[[Mapping[str, np.ndarray]], dict[str, Any]]] = {
    "preact_resnet18": _preact_resnet18,
    "resnet": _resnet,
    "wide_resnet": _wide_resnet,
    "vgg19_bn": _vgg19_bn,
    "vit": _vit,
}
"""`SETTINGS[name](tensors)` returns the settings of an architecture, from PyTorch's tensors."""
