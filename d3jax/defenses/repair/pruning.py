"""Functions that the pruning repairs share, which switch channels of BatchNorm layers off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.errors import ConfigError
from ...core.types import Model, Params, Path


def check_channels(model: Model) -> None:
    """Raise `ConfigError` where a model does not describe the BatchNorm channels to prune."""
    if not model.channels:
        raise ConfigError(
            "the repair prunes channels of BatchNorm layers, and this model names none "
            "(Model.channels); the repair runs on preact_resnet18, wide_resnet and vgg19_bn"
        )


def layer_at(tree: Params, path: Path) -> Any:
    """Return the subtree of a nested dict of model parameters at a path of keys."""
    for key in path:
        tree = tree[key]
    return tree


def silence(
    params: Params, pruned: Mapping[Path, np.ndarray], names: tuple[str, ...] = ("scale", "bias")
) -> Params:
    """Return a model's parameters with scale and bias of pruned BatchNorm channels set to 0.

    `pruned` maps the path of a BatchNorm layer to a mask [C] of its pruned channels. `names` are
    the BatchNorm parameters to set to 0.
    """

    def cut(path: Any, leaf: jax.Array) -> jax.Array:
        *layer, name = (key.key for key in path)
        mask = pruned.get(tuple(layer))
        return leaf if mask is None or name not in names else jnp.where(mask, 0, leaf)

    return jax.tree_util.tree_map_with_path(cut, params)
