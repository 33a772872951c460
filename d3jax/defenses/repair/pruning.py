"""Functions that the pruning repairs share, which switch channels of BatchNorm layers off."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.errors import ConfigError
from ...core.images import as_float
from ...core.types import Model, Params, Path, Repaired, Variables
from ...data.batched import batched_map
from ...training.loop import Hooks
from .common import EVAL_BATCH


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


def inputs_of(model: Model, variables: Variables, images: np.ndarray) -> dict[Path, np.ndarray]:
    """Return the inputs [B, …, C] of every BatchNorm layer for uint8 images, by the layer's path.

    The model runs with its stored statistics.
    """
    check_channels(model)
    compute = jax.jit(functools.partial(_inputs, model, variables))
    found = batched_map(compute, images, batch_size=EVAL_BATCH)
    return {norm.path: found[norm.input] for norm in model.channels}


def _inputs(model: Model, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
    features = model.apply(variables, as_float(images), train=False).features
    return {norm.input: features[norm.input].astype(jnp.float32) for norm in model.channels}


def prune(
    variables: Variables, pruned: Mapping[Path, np.ndarray], silenced: str, hooks: Hooks
) -> Repaired:
    """Return a model with the marked channels pruned, and a trace with their number.

    `silenced` is "scale" or "scale_and_bias".
    """
    names = ("scale",) if silenced == "scale" else ("scale", "bias")
    count = sum(int(mask.sum()) for mask in pruned.values())
    hooks.say(f"prunes {count} of {sum(map(len, pruned.values()))} channels")
    trace = {name: np.array([value]) for name, value in (("step", 1), ("pruned", count))}
    return Repaired(variables._replace(params=silence(variables.params, pruned, names)), trace)
