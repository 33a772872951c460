"""Masks of BatchNorm channels, and the threshold at which ANP and RNP prune by them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Array, Model, Params, Path, Split, Variables
from .held_out import accuracy_on
from .pruning import layer_at, silence

THRESHOLDS = np.arange(19) / 20
"""The thresholds among which a rule chooses: 0, 0.05, …, 0.9."""

Masks = dict[str, Array]
"""An array [C] for every BatchNorm layer, by its path joined with "/"."""


def ones_for(model: Model, params: Params) -> Masks:
    """Return masks of ones for all BatchNorm layers that a model describes."""
    return {
        "/".join(norm.path): jnp.ones(layer_at(params, norm.path)["scale"].shape)
        for norm in model.channels
    }


def masked(params: Params, scales: Masks, biases: Masks | None = None) -> Params:
    """Return parameters with γ of every BatchNorm layer times `scales`, and β times `biases`."""

    def change(path: Any, leaf: jax.Array) -> jax.Array:
        *layer, name = (key.key for key in path)
        factors = {"scale": scales, "bias": biases}.get(name) or {}
        return leaf * factors.get("/".join(layer), 1.0)

    return jax.tree_util.tree_map_with_path(change, params)


def clipped(masks: Masks, data: Any) -> Masks:
    """Return masks clipped to [0, 1]: a `project` of `make_train_step`."""
    return jax.tree.map(lambda one: jnp.clip(one, 0, 1), masks)


def pruned_at(masks: Masks, threshold: float) -> dict[Path, np.ndarray]:
    """Return, for every BatchNorm layer, the channels whose mask is at most a threshold."""
    return {tuple(path.split("/")): np.asarray(one) <= threshold for path, one in masks.items()}


def pruned(variables: Variables, masks: Masks, threshold: float) -> Variables:
    """Return a model whose γ is 0 in the channels with a mask up to a threshold; β stays."""
    params = silence(variables.params, pruned_at(masks, threshold), ("scale",))
    return variables._replace(params=params)


def choose(
    model: Model,
    variables: Variables,
    masks: Masks,
    judged: Split,
    triggered: Split | None,
    drop: float,
) -> float:
    """Return the threshold at which a model is pruned; −1 if none keeps the accuracy.

    The accuracy on the images `judged` may change by less than the share `drop` of what it was. Of
    the thresholds that keep it, this is the largest. With `triggered` images and the labels that
    the attacker wants, it is the one with the lowest ASR.
    """
    whole = accuracy_on(model, variables, judged)
    fine = [
        float(one)
        for one in THRESHOLDS
        if abs(accuracy_on(model, pruned(variables, masks, one), judged) - whole) < drop * whole
    ]
    if triggered is None or not fine:
        return max(fine, default=-1.0)
    return min(fine, key=lambda one: accuracy_on(model, pruned(variables, masks, one), triggered))


def count_at(masks: Masks, threshold: float) -> tuple[int, int]:
    """Return how many channels have a mask up to a threshold, and how many there are."""
    found = pruned_at(masks, threshold).values()
    return sum(int(one.sum()) for one in found), sum(map(len, found))
