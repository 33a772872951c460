"""D3, distance-driven detoxification (Wei, Liu & Zha, ICCV 2025, arXiv 2411.09585).

A fine-tuned backdoored model stays in a region where clean loss and backdoor loss are both low. D3
moves selected weights θ_s as far as possible from their initial values:

    min_θ  λ · max(0, L_clean(θ) − ε) − ‖θ_s − θ_init,s‖

while θ_s stays on (or in) a sphere of radius ‖θ_init,s‖.

`select`, `distance`, `project` and `penalty` work on any parameter pytree and with any optax
optimiser. Without the clean term, projected gradient descent ends at −θ_init,s. An optimiser that
rescales coordinates ends elsewhere, for example Adam at a cosine of about −0.8.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, did_you_mean, names, option, presets
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.errors import ConfigError
from ...core.images import as_float
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Metrics, Model, Params, Repair, Split, Variables
from ...data.batched import batched_map
from ...training.loop import TrainLoop
from ...training.step import Advance, Loss, TrainData
from .common import EVAL_BATCH, one_loop, repair_loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class D3Config:
    """Settings of D3, which moves weights far from their initial values at a low clean loss.

    They are a preset, and the values that differ from it. The preset `paper` has λ 10, a hinge on
    the mean loss, a bound on the norm, and an undivided loss, of which the paper says nothing. What
    else it does not state is as in `code`. The preset `code` (the first author's release) has λ
    0.5, a hinge per sample, and an exact sphere. It divides the loss by λ + 1 when λ > 1. The
    preset `ours` is `code` with λ 4. Of the settings whose accuracy on held-out clean images is
    within 3 points of fine-tuning's, on a BadNets and a Blended model, it moves the weights
    farthest (`benchmarks/d3_choice.py`).

    All presets start from random directions and train for 100 epochs of batches of 256, with a
    cosine schedule. SGD has learning rate 0.01, momentum 0.9 and no weight decay.
    """

    preset: Literal["paper", "code", "ours"] = option(
        "code", "source of lam, hinge, scale and constraint, where they are not given"
    )
    lam: float = option(
        0.5, "λ, weight of the clean penalty; its start if it is adaptive", low=0, member=True
    )
    multiplier: Literal["fixed", "adaptive"] = option(
        "fixed",
        "λ stays (fixed), or is the multiplier of the constraint L_clean ≤ ε (adaptive): every "
        "step adds `multiplier_rate` · (L_clean − ε), and the loss is divided by max(1, λ)",
    )
    multiplier_rate: float = option(
        0.5, "rate at which an adaptive λ follows the violation of the constraint", above=0
    )
    eps: float = option(
        0.1, "ε, clean loss in nats up to which there is no penalty", low=0, member=True
    )
    bound: Literal["fixed", "model"] = option(
        "fixed",
        "ε is `eps` (fixed), or the mean clean loss of the backdoored model on the reserved "
        "images, where that is larger (model)",
    )
    hinge: Literal["mean", "sample", "none"] = option(
        "sample",
        "clean penalty: max(0, mean CE − ε) (mean), the mean of max(0, CE_i − ε) (sample), or "
        "mean CE − ε (none)",
    )
    scale: bool = option(True, "divide the loss by λ + 1 when λ > 1 (a fixed λ only)")
    constraint: Literal["sphere", "ball", "none"] = option(
        "sphere",
        "norm of each selected tensor W after every step: ‖W‖ = ‖W0‖ (sphere), ‖W‖ ≤ ‖W0‖ (ball), "
        "or any (none)",
    )
    start: Literal["random", "near", "middle", "far", "noise"] = option(
        "random",
        "start of θ_s: U(−.5,.5) rescaled to ‖W0‖ (random), W0 (near), 0 (middle), −W0 (far), or "
        "W0 + N(0, std(W0)) (noise)",
    )
    p: float = option(2.0, "p of the p-norm distance", low=1)
    tensors: str = option(
        "head/kernel", "glob of the parameter paths in θ_s; 'linear' selects every 2-D kernel"
    )
    batch_norm: Literal["train", "fixed"] = option(
        "train",
        "BatchNorm uses batch statistics and updates the running ones (train), or uses the stored "
        "ones (fixed)",
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(optimizer=OptimConfig(weight_decay=0.0)),
        "length, batch size and optimiser (default: SGD, lr 0.01, momentum 0.9, no weight decay)",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Build the repair D3 with these settings for the data set that `info` describes."""
        return make_d3(self, info)


PRESETS = presets(
    "preset",
    D3Config(preset="code"),
    D3Config(preset="paper", lam=10.0, hinge="mean", scale=False, constraint="ball"),
    D3Config(preset="ours", lam=4.0),
)


Selection = Any
"""A pytree of Python bools with the structure of the parameters; True marks those in θ_s."""


def select(params: Params, tensors: str = "head/kernel", setting: str = "tensors") -> Selection:
    """Return which of a model's parameters match the glob `tensors`, as a pytree of bools.

    The glob is matched with the path of each leaf, such as "head/kernel". With "linear", all 2-D
    kernels match. Raises `ConfigError` if nothing matches. The message names the `setting` and
    existing paths.
    """

    def chosen(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if tensors == "linear":
            return leaf.ndim == 2 and name.endswith("kernel")
        return fnmatch.fnmatchcase(name, tensors)

    selection = jax.tree_util.tree_map_with_path(chosen, params)
    if not any(jax.tree.leaves(selection)):
        known = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        ]
        raise ConfigError(
            f"{setting}: {tensors!r} matches none of the {len(known)} parameters"
            f"{did_you_mean(tensors, known)}; the last ones are {names(known[-8:])}"
        )
    return selection


def norm(x: jax.Array, p: float = 2.0) -> jax.Array:
    """Return the p-norm ‖x‖_p of a flattened array, with gradient 0 (not NaN) at x = 0.

    The array is scaled by max|x|, so that no power over- or underflows.
    """
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    magnitude = jnp.abs(x) / jnp.where(scale > 0, scale, 1.0)
    zero = magnitude == 0  # at 0, |x|^p has no gradient for p < 2, and the root has none
    total = jnp.sum(jnp.where(zero, 0.0, jnp.where(zero, 1.0, magnitude) ** p))
    return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1.0) ** (1 / p), 0.0)


def distance(
    params: Params, reference_params: Params, selection: Selection, p: float = 2.0
) -> jax.Array | float:
    """Return D3's distance: the sum over the selected weight tensors of ‖θ − θ_init‖_p."""
    parts = jax.tree.map(
        lambda w, w0, chosen: norm(w - w0, p) if chosen else 0.0,
        params,
        reference_params,
        selection,
    )
    return sum(jax.tree.leaves(parts))


def project(
    params: Params, reference_params: Params, selection: Selection, constraint: str = "sphere"
) -> Params:
    """Return D3's parameters with each selected tensor rescaled to its norm in `reference_params`.

    "sphere" sets the Frobenius norm to that of the tensor in `reference_params`. "ball" does so
    only where the norm is larger, and "none" never. A tensor of zeros stays zero.
    """

    def rescale(w: jax.Array, w0: jax.Array, chosen: bool) -> jax.Array:
        if not chosen or constraint == "none":
            return w
        size, radius = norm(w), norm(w0)
        factor = radius / jnp.where(size > 0, size, 1.0)
        return w * (factor if constraint == "sphere" else jnp.minimum(1.0, factor))

    return jax.tree.map(rescale, params, reference_params, selection)


def penalty(ce: jax.Array, eps: jax.Array | float, hinge: str) -> jax.Array:
    """Return D3's hinge penalty on the cross-entropies [B] of clean images above ε, in nats.

    It is max(0, mean(ce) − ε) for hinge "mean", and mean(max(0, ce − ε)) for "sample". For "none"
    it is mean(ce) − ε, which may be negative.
    """
    if hinge == "none":
        return ce.mean() - eps
    return jax.nn.relu(ce.mean() - eps) if hinge == "mean" else jax.nn.relu(ce - eps).mean()


def start(key: jax.Array, reference_params: Params, selection: Selection, kind: str) -> Params:
    """Return a model's parameters with the selected tensors at D3's starting point.

    `kind` is one of the choices of `D3Config.start`. All other tensors are those of
    `reference_params`.
    """
    leaves, treedef = jax.tree.flatten(reference_params)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))

    def place(key: jax.Array, w0: jax.Array, chosen: bool) -> jax.Array:
        if not chosen or kind == "near":
            return w0
        if kind == "random":
            drawn = jax.random.uniform(key, w0.shape, w0.dtype, -0.5, 0.5)
            return drawn * norm(w0) / norm(drawn)
        if kind == "noise":
            return w0 + jax.random.normal(key, w0.shape, w0.dtype) * w0.std()
        return jnp.zeros_like(w0) if kind == "middle" else -w0

    return jax.tree.map(place, keys, reference_params, selection)


def geometry(params: Params, reference_params: Params, selection: Selection) -> Metrics:
    """Return the distance and cosine of D3's selected weights to their initial values, as metrics.

    `distance` is ‖θ_s − θ_init,s‖. `distance_ratio` is the distance over 2‖θ_init,s‖, its largest
    value on the sphere. `cosine` is that of the angle between θ_s and θ_init,s. All are computed
    over the selected tensors together, with the Frobenius norm.
    """
    chosen = jax.tree.leaves(selection)

    def pick(tree: Params) -> jax.Array:
        leaves = zip(jax.tree.leaves(tree), chosen, strict=True)
        return jnp.concatenate([leaf.ravel() for leaf, wanted in leaves if wanted])

    w, w0 = pick(params), pick(reference_params)
    gap = norm(w - w0)
    cosine = w @ w0 / jnp.maximum(norm(w) * norm(w0), 1e-30)
    return {"distance": gap, "distance_ratio": gap / (2 * norm(w0)), "cosine": cosine}


def d3_loss(config: D3Config, model: Model, selection: Selection) -> Loss:
    """Build D3's loss: λ · clean penalty − distance of weights, divided by λ + 1 if it is scaled.

    θ_init comes in `data.reference_params`, and the numbers of `loss_inputs(config)` come in
    `data.loss_inputs`. The loss reports `clean_loss`, `accuracy` and the metrics of `geometry`.
    """

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(
            Variables(params, batch_stats), batch.images, train=config.batch_norm == "train"
        )
        ce = cross_entropy(outputs.logits, batch.labels)
        clean = data.loss_inputs["lam"] * penalty(ce, data.loss_inputs["eps"], config.hinge)
        value = (
            clean - distance(params, data.reference_params, selection, config.p)
        ) / data.loss_inputs["divisor"]
        reported = {"clean_loss": ce.mean(), "accuracy": accuracy(outputs.logits, batch.labels)}
        return value, (
            outputs.batch_stats,
            reported | geometry(params, data.reference_params, selection),
        )

    return loss


def loss_inputs(config: D3Config) -> dict[str, jax.Array]:
    """Return the numbers that D3's loss reads, as float32: `lam`, `eps` and `divisor`.

    The divisor is λ + 1 if the loss is scaled and λ > 1, else 1.
    """
    divisor = config.lam + 1 if config.scale and config.lam > 1 else 1.0
    return {
        name: jnp.float32(value)
        for name, value in (("lam", config.lam), ("eps", config.eps), ("divisor", divisor))
    }


def clean_loss(model: Model, variables: Variables, split: Split) -> jax.Array:
    """Return a model's mean cross-entropy on images, in nats, with its stored statistics."""

    @jax.jit
    def losses(variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply(variables, as_float(images), train=False).logits
        return cross_entropy(logits, labels)

    found = batched_map(functools.partial(losses, variables), *split, batch_size=EVAL_BATCH)
    return jnp.float32(found.mean())


def show_multiplier(data: TrainData, carry: dict[str, jax.Array]) -> TrainData:
    """Return the data of D3's step with λ and the divisor of the adaptive multiplier.

    It is a `view` of `make_train_step`; the carry holds the multiplier as `lam`.
    """
    lam = carry["lam"]
    return data._replace(
        loss_inputs=data.loss_inputs | {"lam": lam, "divisor": jnp.maximum(1.0, lam)}
    )


def moving_multiplier(config: D3Config) -> dict[str, Any]:
    """Return `carry`, `view` and `advance` of D3's step with an adaptive λ; {} with a fixed one."""
    if config.multiplier == "fixed":
        return {}
    return {
        "carry": {"lam": jnp.float32(config.lam)},
        "view": show_multiplier,
        "advance": move_multiplier(config.multiplier_rate),
    }


def move_multiplier(rate: float) -> Advance:
    """Build the `advance` of D3's step that moves λ by the violation of L_clean ≤ ε.

    λ grows by `rate` · (L_clean − ε), where L_clean is the batch's mean cross-entropy, and stays at
    least 0. The metric `lam` is the λ of the step.
    """

    def advance(before, after, reported, data):
        lam = before.carry["lam"]
        moved = lam + rate * (reported["clean_loss"] - data.loss_inputs["eps"])
        state = dataclasses.replace(after, carry={"lam": jnp.maximum(0.0, moved)})
        return state, reported | {"lam": lam}

    return advance


def make_d3(config: D3Config, info: DataInfo) -> Repair:
    """Return D3, the repair that moves selected weights far away from their initial values.

    The trace holds `loss`, `clean_loss`, `accuracy` (of the batches), `distance`, `distance_ratio`
    and `cosine`, and of an adaptive multiplier also `lam`.

    Deviation: an epoch is cut into equal batches, where the authors' code ends on a short one. For
    example, 2,500 images make ten batches of 250.
    """

    def loop(key: jax.Array, model: Model, variables: Variables, reserved: Split) -> TrainLoop:
        reference_params = variables.params
        selection = select(reference_params, config.tensors)
        # Without jit, compilation operation by operation takes 2 s.
        place = jax.jit(
            lambda key, reference_params: start(key, reference_params, selection, config.start)
        )
        begin = variables._replace(params=place(stream(key, "start"), reference_params))
        inputs = loss_inputs(config)
        if config.bound == "model":
            inputs["eps"] = jnp.maximum(inputs["eps"], clean_loss(model, variables, reserved))
        return repair_loop(
            stream(key, "steps"), begin, reserved,
            loss=d3_loss(config, model, selection),
            project=lambda params, data: project(
                params, data.reference_params, selection, config.constraint
            ),
            reference_params=reference_params, loss_inputs=inputs,
            schedule=config.schedule, info=info,
            **moving_multiplier(config),
        )  # fmt: skip

    def check(model: Model, shapes: Variables, size: int) -> None:
        select(shapes.params, config.tensors)

    return one_loop(loop, check)
