"""ASSET, a detector of poisoned samples that learns to tell them from clean ones (Pan et al. 2023).

Source: arXiv 2302.11408. A new network f of the model's architecture is trained on two goals. The
variance of its logits on clean *base* images falls. The cross-entropy of training samples that look
poisoned rises. In each step, these are found in a batch by a small network V. It learns to tell the
model's features of the batch from those of the base images. The samples whose outputs V(h) are
outliers look poisoned. Afterwards the score of a sample is its cross-entropy under f.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from ...config.fields import check_fields, option
from ...core.checks import check_labelled
from ...core.errors import ConfigError, names
from ...core.images import as_float
from ...core.losses import cross_entropy
from ...core.random import stream
from ...core.types import (
    DataInfo,
    Model,
    Params,
    SampleDetector,
    Scored,
    Split,
    TrainState,
    Variables,
)
from ...data.batched import batched_map
from ...data.batching import epoch_plan
from ...models.layers.conv import torch_uniform
from ...runtime.compilation import fast
from ...training.loop import Hooks, TrainLoop, fit
from ...training.step import (
    Batches,
    Loss,
    Rows,
    Step,
    TrainData,
    accept_if,
    chain_steps,
    init_state,
    make_rows,
    make_train_step,
)
from .outlyingness import adjusted_outlyingness, upper_threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class ASSETConfig:
    """Settings of ASSET, which flags samples with a high loss of a network that it trains.

    The defaults are BackdoorBench's.
    """

    rounds: int = option(1, "number of passes over the training samples", low=1)
    batch_size: int = option(256, "images per step, of the samples and of the base", low=2)
    rate: float = option(1e-4, "learning rate of Adam, for both networks", above=0)
    inner_steps: int = option(100, "pairs of steps of the small network V in each step", low=1)
    hidden: int = option(128, "width of the two hidden layers of V", low=1)
    outlier: float = option(2.0, "adjusted outlyingness above which a sample looks poisoned", low=0)
    threshold: Literal["published", "density"] = option(
        "published",
        "threshold of the scores, from a normal distribution of their lower half: as in published "
        "code, or where the density is 1e-6",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build the ASSET detector for the data set that `info` describes."""
        return make_asset(self, info)


def variance_loss(model: Model) -> Loss:
    """Build the loss of f on a batch of base images: the mean variance of an image's logits."""

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch, train=True)
        value = jnp.var(outputs.logits, axis=1, ddof=1).mean()
        return value, (outputs.batch_stats, {"variance": value})

    return loss


class Suspects(NamedTuple):
    """The samples of a batch that look poisoned, repeated so that they fill the batch.

    `images` [B, H, W, C] are floats, `labels` [B] int32, and `count` int32 [] is their number.
    """

    images: jax.Array
    labels: jax.Array
    count: jax.Array


def ascent_loss(model: Model) -> Loss:
    """Build the loss of f on `Suspects`: minus their mean cross-entropy; reports their number."""

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        value = -cross_entropy(outputs.logits, batch.labels).mean()
        return value, (outputs.batch_stats, {"ascent": value, "suspects": batch.count})

    return loss


def init_valuation(key: jax.Array, inputs: int, hidden: int) -> Params:
    """Return the first parameters of V: three linear layers with PyTorch's initial weights."""
    sizes, params = (inputs, hidden, hidden, 1), []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        weights, biases = jax.random.split(jax.random.fold_in(key, i))
        draw = torch_uniform(before)
        params.append({"kernel": draw(weights, (before, after)), "bias": draw(biases, (after,))})
    return params


def valuation(params: Params, h: Float[jax.Array, "B D"]) -> Float[jax.Array, " B"]:
    """Return V(h) in (0, 1) [B]: linear layers with ReLU, and a sigmoid at the end."""
    *inner, last = params
    for layer in inner:
        h = jax.nn.relu(h @ layer["kernel"] + layer["bias"])
    return jax.nn.sigmoid(h @ last["kernel"] + last["bias"])[:, 0]


def valuation_step(rate: float) -> Step:
    """Build one pair of steps of V: towards 1 on the samples' features, then 0 on the base's.

    Each has its own state of Adam. The data are (features of samples, features of base images).
    """

    def towards(wanted: float, place: int) -> Step:
        def loss(params, stats, batch, key, data):
            return jnp.mean((valuation(params, batch) - wanted) ** 2), (stats, {})

        return make_train_step(
            optax.adam(rate), loss=loss, batches=lambda key, step, data: data[place]
        )

    return chain_steps(towards(1.0, 0), towards(0.0, 1))


def learned_values(
    key: jax.Array,
    samples: Float[jax.Array, "B D"],
    base: Float[jax.Array, "M D"],
    config: ASSETConfig,
) -> Float[jax.Array, " B"]:
    """Return V(h) of the samples' features, of a new V that learned them against the base's."""
    tx, step = optax.adam(config.rate), valuation_step(config.rate)
    params = init_valuation(key, samples.shape[-1], config.hidden)
    state = init_state(Variables(params, {}), optax.chain(tx, tx), key)
    # V has no convolutions, so the loop is fast on CPU too.
    state, _ = jax.lax.scan(
        lambda state, _: step(state, (samples, base)), state, length=config.inner_steps
    )
    return valuation(state.variables.params, samples)


def suspect_batches(model: Model, config: ASSETConfig, rows: Rows, base: Batches) -> Batches:
    """Build the function that finds the `Suspects` among the samples of a step.

    The features are the model's penultimate ones in train mode, so with the statistics of the
    batch. Its variables are `data.reference_params`.
    """

    def features(images: jax.Array, data: TrainData) -> jax.Array:
        found = model.apply(data.reference_params, images, train=True).features["penultimate"]
        return jax.lax.stop_gradient(found.reshape(len(images), -1).astype(jnp.float32))

    def batches(key: jax.Array, step: jax.Array, data: TrainData) -> Suspects:
        levels, labels, _ = (part[rows(key, step)] for part in data.resident())
        images = as_float(levels)
        own = jax.random.fold_in(stream(key, "valuation"), step)
        clean = features(base(key, step, data), data)
        values = learned_values(own, features(images, data), clean, config)
        chosen = adjusted_outlyingness(values) > config.outlier
        count = chosen.sum()
        order = jnp.argsort(~chosen)  # stable: the chosen ones first
        filled = order[jnp.arange(len(order)) % jnp.maximum(count, 1)]
        return Suspects(images[filled], labels[filled], count)

    return batches


def skip_few(before: TrainState, after: TrainState, reported: Any, data: TrainData):
    """Return the train state without the update if fewer than two samples look poisoned.

    It is an `advance` of `make_train_step`.
    """
    count = reported["suspects"]
    reported = reported | {"suspects": count.astype(jnp.float32)}
    return accept_if(count > 1, before, after), reported


def asset_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    samples: Split,
    reserved: Split,
    config: ASSETConfig,
) -> TrainLoop:
    """Build the `TrainLoop` that trains f. Its parameters are those of f, from `model.init` on.

    A step is one of Adam on the base images and one on the suspects, each with its own state. The
    base images of a step are drawn from all reserved images.
    """
    size, kept = len(samples.labels), min(config.batch_size, len(reserved.labels))
    per_epoch, batch_size = epoch_plan(size, config.batch_size, drop_last=False)
    rows = make_rows(size=size, steps_per_epoch=per_epoch, batch_size=batch_size)
    base_rows = make_rows(size=len(reserved.labels), steps_per_epoch=1, batch_size=kept)

    def base(key: jax.Array, step: jax.Array, data: TrainData) -> jax.Array:
        return as_float(data.loss_inputs[base_rows(stream(key, "base"), step)])

    tx = optax.adam(config.rate)
    step = chain_steps(
        make_train_step(tx, loss=variance_loss(model), batches=base),
        make_train_step(
            tx,
            loss=ascent_loss(model),
            batches=suspect_batches(model, config, rows, base),
            advance=skip_few,
        ),
    )
    begin = model.init(stream(key, "init"))
    state = init_state(begin, optax.chain(tx, tx), stream(key, "steps"))
    given, none = Split(*map(jnp.asarray, samples)), jnp.zeros(size, bool)
    data = TrainData(given, none, {}, variables, jnp.asarray(reserved.images))
    return TrainLoop(step, state, data, config.rounds * per_epoch)


@functools.partial(fast, static=1)
def _losses(model: Model, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = model.apply(variables, as_float(images), train=False).logits
    return cross_entropy(logits.astype(jnp.float32), labels)


def make_asset(config: ASSETConfig, info: DataInfo) -> SampleDetector:
    """Return ASSET, a `SampleDetector` of samples with a high loss of a network trained for it.

    The score is the cross-entropy of a sample under f, with f's running statistics. A sample is
    flagged if its score is above `upper_threshold` of all scores.

    Deviations: the base images are the reserved ones, where the paper takes test images. Batches
    have equal sizes. The suspects of a batch are repeated until they fill it, so that shapes are
    static. Their losses and statistics are weighted by the number of copies.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        check_labelled("samples", samples)
        check_labelled("reserved", reserved)
        loop = asset_loop(stream(key, "asset"), model, variables, samples, reserved, config)
        state, _ = fit(loop, hooks.within("detector"))
        compute = functools.partial(_losses, model, state.variables)
        scores = batched_map(compute, *samples, batch_size=config.batch_size)
        return Scored(scores, scores > upper_threshold(scores, config.threshold))

    def check(model: Model, shapes: Variables, samples: int, reserved: int) -> None:
        images = jax.ShapeDtypeStruct((1, *info.shape), np.float32)
        run = functools.partial(model.apply, train=False)
        known = jax.eval_shape(run, shapes, images).features
        if "penultimate" not in known:
            raise ConfigError(
                "needs the input of the classifier, and the model's features have no "
                f"'penultimate'; they are {names(known) or 'none'}"
            )
        for name, count in (("samples", samples), ("reserved", reserved)):
            if count < 2:
                raise ConfigError(f"{name}: {count} images are too few for a batch, want 2")

    return SampleDetector(score, check)
