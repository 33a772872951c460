"""NPD, neural polarizer defence (Zhu et al., NeurIPS 2023, arXiv 2306.16697).

A linear layer, the *polarizer*, is put before a late convolution of the frozen model. It learns to
let clean features pass and to filter those of a trigger. Adversarial examples of at most L2 norm
`bound` towards a target class stand for the trigger:

    L = λ₁ CE(f(x), y) + λ₂ CE(f(x̃), argmax f(x))
        + λ₃ mean −ln(1.0001 − p_y′(x̃)) + λ₄ mean −ln(1.0001 − p_t(x̃))

f is the model with its polarizer, p = softmax f(x̃), t the class to which x̃ was driven, and y′ the
most likely class of x̃ other than y.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.errors import ConfigError, did_you_mean, names
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Outputs, Repair, Repaired, Split, Variables
from ...training.loop import Hooks, fit, trace_of
from ...training.step import Loss
from .common import repair_loop
from .pruning import layer_at

PLUG = "polarizer"
"""The name of the polarizer among the parameters and statistics of the network that has one."""
EPSILON, MOMENTUM = 1e-5, 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class NPDConfig:
    """Settings of NPD, which puts a learned linear filter before a late convolution.

    The defaults are BackdoorBench's: a warm-up of 5 epochs at the rate 1e-4, then 50 epochs at
    0.01, in batches of 128 without augmentation. Its reserved images are drawn by class
    (`reserved.stratified: true`), and its place is the input of the first convolution of the last
    block of PreActResNet18.
    """

    place: str = option(
        "",
        "name of the activation that is filtered (empty: in ResNets the input of the last block's "
        "first convolution)",
    )
    bound: float = option(3.0, "largest L2 norm of the perturbation, in pixels of [0, 1]", above=0)
    rate: float = option(0.1, "step of the perturbation", above=0)
    steps: int = option(2, "steps of the perturbation", low=1)
    enough: float = option(
        0.6, "share of a batch that reaches its target, above which steps end", low=0, high=1
    )
    lam_clean: float = option(1.0, "λ₁, weight of the clean loss", low=0, member=True)
    lam_same: float = option(0.4, "λ₂, weight of equal predictions on x̃", low=0, member=True)
    lam_second: float = option(0.4, "λ₃, weight of p_y′", low=0, member=True)
    lam_target: float = option(0.4, "λ₄, weight of p_t", low=0, member=True)
    warm_up: ScheduleConfig = option(
        ScheduleConfig(
            epochs=5,
            batch_size=128,
            augment="none",
            optimizer=OptimConfig(lr=1e-4, weight_decay=0.0, schedule="constant"),
        ),
        "length, batch size and optimiser of the warm-up",
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(
            epochs=50,
            batch_size=128,
            augment="none",
            optimizer=OptimConfig(schedule="constant"),
        ),
        "length, batch size and optimiser of the polarizer",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair NPD with these settings for the data set that `info` describes."""
        return make_npd(self, info)


def place_of(place: str, model: Model) -> str:
    """Return the name of the activation that the polarizer filters.

    By default it is the output, with its ReLU, of the last BatchNorm layer but one of those that
    feed a convolution: in ResNets the input of the last block's first convolution. Raises
    `ConfigError` if the model has no such activation.
    """
    found = place or _before_last_convolutions(model)
    known = model.activations() if model.activations else {}
    if found not in known:
        raise ConfigError(
            f"place: {found!r} is no activation of this model{did_you_mean(found, known)}; it has "
            f"{names(known) or 'none that it names'}"
        )
    return found


def _before_last_convolutions(model: Model) -> str:
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    feeding = [
        norm.output
        for norm in model.channels
        if any(layer_at(params, path)["kernel"].ndim == 4 for path in norm.consumers)
    ]
    if not feeding:
        raise ConfigError(
            "place: this model does not describe its BatchNorm layers; name an activation"
        )
    return feeding[-2:][0]


@functools.lru_cache(maxsize=8)
def polarized(model: Model, place: str) -> Model:
    """Return the network with a polarizer at an activation: a 1×1 convolution and BatchNorm.

    `init` gives the identity, with the statistics of features of mean 0 and variance 1. With
    `train` the model itself still runs with its stored statistics, and only the polarizer's
    BatchNorm uses those of the batch.
    """

    def init(key: jax.Array) -> Variables:
        variables = model.init(key)
        assert model.activations is not None  # `place_of` has checked it
        channels = model.activations()[place_of(place, model)].shape[-1]
        plug = {
            "kernel": jnp.eye(channels),
            "scale": jnp.ones(channels),
            "bias": jnp.zeros(channels),
        }
        stats = {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}
        return Variables(
            variables.params | {PLUG: plug}, dict(variables.batch_stats) | {PLUG: stats}
        )

    def apply(variables: Variables, images: jax.Array, *, train: bool, edit: Any = None) -> Outputs:
        params, stats = dict(variables.params), dict(variables.batch_stats)
        plug, own = params.pop(PLUG), stats.pop(PLUG)
        name, moved = place_of(place, model), {}
        first = (edit or {}).get(name)

        def filtered(x: jax.Array) -> jax.Array:
            x = first(x) if first else x
            x, found = _filter(x, plug, own, train)
            moved.update(found)
            return x

        inner = Variables(params, stats)
        edits = dict(edit or {}) | {name: filtered}
        outputs = model.apply(inner, images, train=False, edit=edits)
        return outputs._replace(batch_stats=stats | {PLUG: dict(moved)})

    return Model(init, apply, model.activations, model.channels)


def _filter(
    x: jax.Array, plug: dict[str, jax.Array], stats: dict[str, jax.Array], train: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return features [B, …, C] after the polarizer, and its running statistics."""
    y = x.astype(jnp.float32) @ plug["kernel"]
    mean, var = stats["mean"], stats["var"]
    if train:
        axes = tuple(range(y.ndim - 1))
        batch_mean, batch_var = y.mean(axes), y.var(axes)
        moved = {
            "mean": MOMENTUM * mean + (1 - MOMENTUM) * batch_mean,
            "var": MOMENTUM * var + (1 - MOMENTUM) * batch_var,
        }
        mean, var = batch_mean, batch_var
    else:
        moved = {"mean": mean, "var": var}
    y = (y - mean) * jax.lax.rsqrt(var + EPSILON) * plug["scale"] + plug["bias"]
    return y.astype(x.dtype), jax.lax.stop_gradient(moved)


def away(probabilities: jax.Array, classes: jax.Array) -> jax.Array:
    """Return −ln(1.0001 − p + 1e-12) [B] for the probability p of a class [B] of each image."""
    p = jnp.take_along_axis(probabilities, classes[:, None], 1)[:, 0]
    return -jnp.log(1.0001 - p + 1e-12)


def second_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the most likely class [B] of each image other than its label."""
    hidden = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(hidden, -jnp.inf, logits).argmax(-1)


def perturbed(
    logits_of: Any, images: jax.Array, labels: jax.Array, config: NPDConfig
) -> tuple[jax.Array, jax.Array]:
    """Return (x̃, t): images driven towards their most likely wrong class t, within the L2 bound.

    The loss of an image is clamped to ±80, and x̃ to [0, 1]. Steps end when more than `enough` of
    the batch is classified as t.
    """
    target = second_class(logits_of(images), labels)

    def value(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(jnp.clip(images + change, 0, 1))
        return jnp.clip(cross_entropy(logits, target), -80, 80).sum(), logits

    change, ended = jnp.zeros_like(images), jnp.bool_(False)
    for _ in range(config.steps):  # not a loop of XLA, in which convolutions are slow on CPU
        slope, logits = jax.grad(value, has_aux=True)(change)
        ended |= (logits.argmax(-1) == target).mean() > config.enough
        moved = change - config.rate * jnp.sign(slope)
        size = jnp.sqrt(jnp.sum(moved**2, (1, 2, 3), keepdims=True))
        moved *= jnp.minimum(1, config.bound / jnp.maximum(size, 1e-12))
        change = jnp.where(ended, change, moved)
    return jnp.clip(images + change, 0, 1), target


def warm_up_loss(network: Model) -> Loss:
    """Build the loss of the warm-up: CE with the polarizer in train mode, the model frozen."""

    def loss(plug, batch_stats, batch, key, data):
        variables = Variables(data.reference_params | {PLUG: plug}, batch_stats)
        outputs = network.apply(variables, batch.images, train=True)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def npd_loss(network: Model, config: NPDConfig) -> Loss:
    """Build NPD's loss of the polarizer, which uses its stored statistics.

    The model's parameters are `data.reference_params`, and `data.loss_inputs` has λ₁ to λ₄. The
    loss reports `clean_loss`, `accuracy` and `reached`, the share of x̃ classified as t.
    """

    def loss(plug, batch_stats, batch, key, data):
        images, labels, weights = batch.images, batch.labels, data.loss_inputs

        def logits_of(plug, images: jax.Array) -> jax.Array:
            variables = Variables(data.reference_params | {PLUG: plug}, batch_stats)
            return network.apply(variables, images, train=False).logits

        fixed = functools.partial(logits_of, jax.lax.stop_gradient(plug))
        driven, target = perturbed(fixed, images, labels, config)
        clean = logits_of(plug, images)
        after = logits_of(plug, jax.lax.stop_gradient(driven))
        probabilities = jax.nn.softmax(after)
        parts = {
            "clean": cross_entropy(clean, labels),
            "same": cross_entropy(after, clean.argmax(-1)),
            "second": away(probabilities, second_class(after, labels)),
            "target": away(probabilities, target),
        }
        value = jnp.float32(0)
        for name, part in parts.items():
            value += weights[name] * part.mean()
        reported = {
            "clean_loss": parts["clean"].mean(),
            "accuracy": accuracy(clean, labels),
            "reached": (after.argmax(-1) == target).mean(),
        }
        return value, (batch_stats, reported)

    return loss


def make_npd(config: NPDConfig, info: DataInfo) -> Repair:
    """Return NPD, the repair that puts a learned filter into the model.

    The repaired network is `polarized(model, place)`. The trace is that of the polarizer's
    training.

    Deviations: an epoch is cut into equal batches. The perturbation's loss is the sum over the
    batch, so that every image has its own step.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        network = polarized(model, config.place)
        start = network.init(stream(key, "polarizer"))
        stats = dict(variables.batch_stats) | {PLUG: start.batch_stats[PLUG]}
        loop = repair_loop(
            stream(key, "warm_up"), Variables(start.params[PLUG], stats), reserved,
            loss=warm_up_loss(network), reference_params=dict(variables.params),
            schedule=config.warm_up, info=info,
        )  # fmt: skip
        warm = fit(loop, hooks.within("warm_up"))[0].variables
        weights = {
            "clean": jnp.float32(config.lam_clean),
            "same": jnp.float32(config.lam_same),
            "second": jnp.float32(config.lam_second),
            "target": jnp.float32(config.lam_target),
        }
        loop = repair_loop(
            stream(key, "steps"), warm, reserved,
            loss=npd_loss(network, config), loss_inputs=weights,
            reference_params=dict(variables.params), schedule=config.schedule, info=info,
        )  # fmt: skip
        state, records = fit(loop, hooks.within("polarizer"))
        params = dict(variables.params) | {PLUG: state.variables.params}
        found = Variables(params, state.variables.batch_stats)
        return Repaired(found, trace_of(records), network)

    def check(model: Model, shapes: Variables, size: int) -> None:
        place_of(config.place, model)

    return Repair(repair, check, network=lambda model: polarized(model, config.place))
