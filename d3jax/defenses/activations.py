"""Choice of a model's activations by name, for the detectors that read them."""

from __future__ import annotations

import functools
import math
import re

import jax
import numpy as np

from ..core.errors import ConfigError, did_you_mean, names
from ..core.types import DataInfo, Model


@functools.lru_cache(maxsize=8)
def maps_of(model: Model, info: DataInfo) -> tuple[str, ...]:
    """Return the names of the activations with more than one place, in the network's order.

    Raises `ConfigError` if the model names none.
    """
    shapes = model.activations() if model.activations else {}
    found: list[str] = []

    def run(key: jax.Array, images: jax.Array) -> None:
        found.extend(model.apply(model.init(key), images, train=False).features)

    if shapes:
        jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((1, *info.shape), np.float32))
    maps = tuple(name for name in found if math.prod(shapes[name].shape[:-1]) > 1)
    if not maps:
        raise ConfigError(
            "needs activations of more than one place, and this model names "
            f"{names(shapes) or 'no activations'}"
        )
    return maps


def convolutions_of(model: Model, info: DataInfo) -> tuple[str, ...]:
    """Return the names of the outputs of convolutions, in the network's order.

    They are the maps whose last name is `conv` and a number. If there are none, all maps are
    returned. Raises as `maps_of`.
    """
    maps = maps_of(model, info)
    return tuple(one for one in maps if re.fullmatch(r"conv[\d_]*", one.split("/")[-1])) or maps


def check_map(name: str, model: Model, info: DataInfo, setting: str) -> None:
    """Raise `ConfigError` if an activation is not one of `maps_of`; `setting` is its setting."""
    maps = maps_of(model, info)
    if name not in maps:
        raise ConfigError(
            f"{setting}: {name!r} is no activation of more than one place of this model"
            f"{did_you_mean(name, maps)}; it has {names(maps)}"
        )
