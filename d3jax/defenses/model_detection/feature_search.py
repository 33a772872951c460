"""The search for the trigger of one class in feature space, which FeatureRE makes for every class.

The transformation of images is a U-Net, and the mask selects features of one activation. The
configs here are `feature_re.FeatureREConfig`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...core.images import as_float
from ...core.losses import cross_entropy
from ...core.random import stream
from ...core.types import Array, Batch, DataInfo, Model, Params, Split, TrainState, Variables
from ...data.batched import batched_map
from ...training.loop import TrainLoop
from ...training.step import (
    Loss,
    Reported,
    Step,
    TrainData,
    init_state,
    make_batches,
    make_rows,
    make_train_step,
)

if TYPE_CHECKING:
    from .feature_re import FeatureREConfig


class Reversed(NamedTuple):
    """The evidence of FeatureRE: what the best pass of the search for each of K classes reached.

    Every field is float32 [K]. `mixed` is the mixed value, `cosine` the similarity of the mean
    features of transformed images to those of the class, and `success` the success rate. `change`,
    `size` and `spread` are the means over the pass of what the settings of the same name bound;
    `size` is Σ m.
    """

    mixed: jax.Array
    cosine: jax.Array
    success: jax.Array
    change: jax.Array
    size: jax.Array
    spread: jax.Array


class Progress(NamedTuple):
    """The progress of the search for one class: sums over the pass, weights, and the best pass.

    `steps` is the number of steps so far. `sums` are those of the reported values of `VALUES` over
    the pass. `weights` are the shares by which the last pass missed the bounds of change, success
    and spread; they begin at 1. `best` has the fields of `Reversed`, all of one pass.
    """

    steps: jax.Array
    sums: dict[str, jax.Array]
    weights: dict[str, jax.Array]
    best: Reversed


VALUES = ("cosine", "success", "change", "size", "spread")
"""The values of a step that are averaged over a pass."""


def mask_of(raw: jax.Array) -> jax.Array:
    """Return the mask of features in (0, 1) from its raw parameters, by tanh."""
    return jnp.tanh(raw) / (2 + 1e-7) + 0.5


def spread_of(features: jax.Array, counted: jax.Array, mask: jax.Array) -> jax.Array:
    """Return Σ std(m · features) / Σ m, over the counted images [B] of features [B, …].

    The standard deviation over images has the divisor n − 1, as in the authors' program.
    """
    weights = counted.reshape(-1, *(1,) * (features.ndim - 1))
    count = weights.sum()
    middle = (weights * features).sum(0) / count
    squares = (weights * (features - middle) ** 2).sum(0) / jnp.maximum(count - 1, 1)
    safe = jnp.where(squares > 0, squares, 1.0)
    deviation = jnp.where(squares > 0, jnp.sqrt(safe), 0.0)
    return (mask * deviation).sum() / mask.sum()


def cosine_of(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the cosine similarity of two arrays, flattened; a norm is at least 1e-8."""
    norms = (jnp.maximum(jnp.linalg.norm(each.ravel()), 1e-8) for each in (first, second))
    one, two = norms
    return (first.ravel() @ second.ravel()) / (one * two)


def excess(value: jax.Array, bound: float) -> jax.Array:
    """Return by which share of the bound a value exceeds it, at least 0."""
    return jnp.maximum(value - bound, 0) / bound


def mean_of(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Return the mean of values [B] over the counted images [B]."""
    return (counted * values).sum() / jnp.maximum(counted.sum(), 1)


def feature_loss(
    model: Model, config: FeatureREConfig, info: DataInfo, transform: Any, layer: str
) -> Loss:
    """Build FeatureRE's loss of the transformation and the mask for one class.

    The parameters are those of the U-Net, and `data.trigger` has the raw mask and the `Progress`.
    `data.loss_inputs` has the `label`, the class's mean features `centre`, and the `features` of
    all images. The loss of the transformation keeps the mask fixed, and that of the mask the
    features. It reports `VALUES`.
    """
    mean, std = jnp.asarray(info.mean), jnp.asarray(info.std)

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: TrainData):
        given, (raw, progress) = data.loss_inputs, data.trigger
        counted = (batch.labels != given["label"]).astype(jnp.float32)
        wanted = jnp.full(batch.labels.shape, given["label"])
        per_pass = len(data.resident()[1]) // config.batch_size
        searching = progress.steps >= config.warm_up * per_pass
        rows = jax.random.randint(key, wanted.shape, 0, len(given["features"]))
        others, mask = given["features"][rows], mask_of(raw)
        plain = (batch.images - mean) / std
        moved = transform(params, plain)
        seen = []

        def logits(images: Array, edit: Any) -> jax.Array:
            variables = data.reference_params
            return model.apply(variables, images, train=False, edit={layer: edit}).logits

        def mixed(found: jax.Array) -> jax.Array:
            seen.append(found)
            fixed = jnp.where(searching, jax.lax.stop_gradient(mask), 1.0)
            return fixed * found + (1 - fixed) * others

        outputs = logits(moved * std + mean, mixed)
        features = seen[0]
        ce = mean_of(cross_entropy(outputs, wanted), counted)
        values = {
            "cosine": cosine_of(given["centre"], _mean_features(features, counted)),
            "success": mean_of(outputs.argmax(-1) == wanted, counted),
            "change": mean_of(((moved - plain) ** 2).mean((1, 2, 3)), counted),
            "size": mask.sum(),
            "spread": spread_of(features, counted, jax.lax.stop_gradient(mask)),
        }
        kept = jax.lax.stop_gradient(features)
        by_mask = logits(batch.images, lambda _: mask * kept + (1 - mask) * others)
        total = jnp.where(
            searching,
            _search(values, ce, progress.weights, config)
            + mean_of(cross_entropy(by_mask, wanted), counted)
            + _if(mask.sum() > _limit(config, mask), mask.sum()),
            ce + _if(values["change"] > config.change, 100 * values["change"]),
        )
        return total, (batch_stats, values)

    return loss


def _mean_features(features: jax.Array, counted: jax.Array) -> jax.Array:
    weights = counted.reshape(-1, *(1,) * (features.ndim - 1))
    return (weights * features).sum(0) / jnp.maximum(counted.sum(), 1)


def _if(condition: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.where(condition, value, 0.0)


def _limit(config: FeatureREConfig, mask: jax.Array) -> int:
    """Return the largest Σ m, as a whole number like the authors'."""
    return max(1, int(mask.size * config.size))


def _search(
    values: dict[str, jax.Array],
    ce: jax.Array,
    weights: dict[str, jax.Array],
    config: FeatureREConfig,
) -> jax.Array:
    """Return the loss of the transformation after the warm-up.

    A bound that is kept adds nothing. One that is not adds its value, by its weight.
    """
    spread, change = values["spread"], values["change"]
    return (
        5 * jnp.maximum(values["cosine"], 0)
        + _if(spread > config.spread, 10 * (1 + weights["spread"]) * spread)
        + _if(change > config.change, 10 * (1 + weights["change"]) * change)
        + _if(values["success"] < config.success, (1 + weights["success"]) * ce)
    )


def ended(progress: Progress, config: FeatureREConfig, per_pass: int, limit: int) -> Progress:
    """Return the progress after a pass: with a mixed value, new weights, and sums at 0.

    The mixed value is cosine − success + the excesses of change, size and spread over their bounds.
    """
    means = {name: total / per_pass for name, total in progress.sums.items()}
    over = {
        "change": excess(means["change"], config.change),
        "size": excess(means["size"], float(limit)),
        "spread": excess(means["spread"], config.spread),
    }
    value = means["cosine"] - means["success"] + sum(over.values())
    searching = progress.steps > config.warm_up * per_pass
    better = searching & (value < progress.best.mixed)
    best = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), Reversed(value, **means), progress.best
    )
    missed = jnp.maximum(config.success - means["success"], 0) / config.success
    weights = {"change": over["change"], "success": missed, "spread": over["spread"]}
    weights = {
        name: jnp.where(searching, weight, progress.weights[name])
        for name, weight in weights.items()
    }
    return Progress(progress.steps, _zeros(), weights, best)


def _zeros() -> dict[str, jax.Array]:
    return {name: jnp.zeros(()) for name in VALUES}


def feature_step(
    model: Model, config: FeatureREConfig, info: DataInfo, transform: Any, layer: str, size: int
) -> Step:
    """Build the train step of FeatureRE, which updates the transformation and the mask."""
    per_pass = size // config.batch_size
    assert model.activations is not None  # `layer_of` has checked it
    shape = model.activations()[layer].shape
    limit = max(1, int(np.prod(shape) * config.size))

    def view(data: TrainData, carry: dict[str, Any]) -> TrainData:
        return data._replace(trigger=(carry["mask"].value, carry["progress"]))

    def advance(before: TrainState, after: TrainState, found: Reported, data: TrainData):
        progress = before.carry["progress"]
        sums = {name: progress.sums[name] + found[name] for name in VALUES}
        progress = progress._replace(steps=progress.steps + 1, sums=sums)
        progress = jax.tree.map(
            lambda now, then: jnp.where(after.step % per_pass == 0, then, now),
            progress,
            ended(progress, config, per_pass, limit),
        )
        metrics = {"mixed": progress.best.mixed, **{name: found[name] for name in VALUES}}
        return dataclasses.replace(after, carry=after.carry | {"progress": progress}), metrics

    rows = make_rows(size=size, steps_per_epoch=per_pass, batch_size=config.batch_size)
    return make_train_step(
        optax.adam(config.lr, 0.5, 0.9),
        loss=feature_loss(model, config, info, transform, layer),
        batches=make_batches(rows=rows, augment=lambda key, images: images),
        view=view,
        trained={"mask": optax.adam(config.mask_lr, 0.5, 0.9)},
        advance=advance,
    )


def features_of(model: Model, variables: Variables, layer: str, split: Split) -> jax.Array:
    """Return the activation `layer` [N, …] of images."""

    @jax.jit
    def compute(images: jax.Array) -> jax.Array:
        return model.apply(variables, as_float(images), train=False).features[layer]

    return jnp.asarray(batched_map(compute, split.images, batch_size=250), jnp.float32)


def class_loop(
    key: jax.Array,
    step: Step,
    steps: int,
    init: Any,
    config: FeatureREConfig,
    variables: Variables,
    split: Split,
    features: jax.Array,
    label: int,
) -> TrainLoop:
    """Build the `TrainLoop` of FeatureRE's search for one class.

    `features` [N, …] are those of the images in `split`. The centre is the mean of the class's own.
    """
    own = jax.random.fold_in(stream(key, "search"), label)
    rows = np.flatnonzero(np.asarray(split.labels) == label)
    centre = features[rows].mean(0) if len(rows) else jnp.zeros(features.shape[1:])
    infinite = Reversed(*(jnp.full((), jnp.inf) for _ in Reversed._fields))
    ones = {name: jnp.ones(()) for name in ("change", "success", "spread")}
    progress = Progress(jnp.zeros((), jnp.int32), _zeros(), ones, infinite)
    carry = {"mask": jnp.ones(features.shape[1:]), "progress": progress}
    state = init_state(
        Variables(init(stream(own, "transformation")), {}),
        optax.adam(config.lr, 0.5, 0.9),
        own,
        carry,
        {"mask": optax.adam(config.mask_lr, 0.5, 0.9)},
    )
    inputs = {"label": jnp.int32(label), "centre": centre, "features": features}
    poisoned = jnp.zeros(len(split.labels), bool)
    device = Split(*map(jnp.asarray, split))
    return TrainLoop(step, state, TrainData(device, poisoned, (), variables, inputs), steps)
