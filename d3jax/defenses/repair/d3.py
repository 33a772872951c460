"""D3: distance-driven detoxification (Wei, Liu & Zha, ICCV 2025, arXiv 2411.09585).

A fine-tuned backdoored model stays where clean and backdoor loss are both low. D3 asks selected weights θ_s to leave:

    min_θ  λ · max(0, L_clean(θ) − ε) − ‖θ_s − θ_init,s‖   with θ_s kept on (or in) a sphere of radius ‖θ_init,s‖.

`select`, `distance`, `project` and `penalty` work on any parameter pytree and any optax optimiser. Without the clean term,
projected gradient descent ends at −θ_init,s; an optimiser that rescales coordinates ends elsewhere (Adam at cos∠ ≈ −0.8).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, did_you_mean, names, option, presets
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.errors import ConfigError
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Metrics, Model, Params, Repair, Split, Variables
from ...training.loop import TrainLoop
from ...training.step import Loss
from .common import one_loop, repair_loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class D3Config:
    """A preset and what departs from it; what neither paper nor code states is as in the code.

    `paper`: λ 10, hinge on the mean loss, a bound on the norm. `code` (the first author's release): λ 0.5, hinge per
    sample, exact sphere, loss divided by λ + 1 when λ > 1. Both start from random directions, SGD 0.01/0.9 without weight
    decay, cosine over 100 epochs of batch 256.
    """

    preset: Literal["paper", "code"] = option(
        "code", "where λ, hinge, scale and constraint come from unless given"
    )
    lam: float = option(0.5, "λ, the weight of the clean penalty", low=0, member=True)
    eps: float = option(0.1, "ε, the clean loss (nats) that costs nothing", low=0, member=True)
    hinge: Literal["mean", "sample"] = option(
        "sample", "max(0, mean CE − ε), or the mean of max(0, CE_i − ε)"
    )
    scale: bool = option(True, "divide the loss by λ + 1 when λ > 1")
    constraint: Literal["sphere", "ball", "none"] = option(
        "sphere", "‖W‖ = ‖W0‖, or ≤, per selected tensor, after every step"
    )
    start: Literal["random", "near", "middle", "far", "noise"] = option(
        "random", "start of θ_s: U(−.5,.5) rescaled to ‖W0‖, W0, 0, −W0, or W0 + N(0, std(W0))"
    )
    p: float = option(2.0, "p of the p-norm distance", low=1)
    tensors: str = option(
        "head/kernel", "glob of parameter paths that make θ_s; 'linear': every 2-D kernel"
    )
    batch_norm: Literal["train", "fixed"] = option(
        "train", "batch statistics and updated running ones, or the stored ones"
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(optimizer=OptimConfig(weight_decay=0.0)),
        "length, batch, optimiser (its own: SGD 0.01/0.9 without weight decay)",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Return the repair for a data set."""
        return make_d3(self, info)


PRESETS = presets(
    "preset",
    D3Config(preset="code"),
    D3Config(preset="paper", lam=10.0, hinge="mean", scale=False, constraint="ball"),
)


Selection = Any
"""A pytree of Python bools with the structure of the parameters."""


def select(params: Params, tensors: str = "head/kernel", setting: str = "tensors") -> Selection:
    """Which leaves of `params` are θ_s: those whose path matches the glob `tensors`, or all 2-D kernels for "linear".

    Raises `ConfigError`, naming the `setting` and paths there are, when nothing matches.
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
            f"{setting}: {tensors!r} matches none of the {len(known)} parameters{did_you_mean(tensors, known)}; "
            f"the last ones are {names(known[-8:])}"
        )
    return selection


def norm(x: jax.Array, p: float = 2.0) -> jax.Array:
    """‖x‖_p of the flattened array, with gradient 0 (not NaN) at x = 0. Scaled by max|x|, so that no power over- or underflows."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    magnitude = jnp.abs(x) / jnp.where(scale > 0, scale, 1.0)
    zero = magnitude == 0  # |x|^p has no gradient there for p < 2, and the root has none at 0
    total = jnp.sum(jnp.where(zero, 0.0, jnp.where(zero, 1.0, magnitude) ** p))
    return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1.0) ** (1 / p), 0.0)


def distance(
    params: Params, reference_params: Params, selection: Selection, p: float = 2.0
) -> jax.Array | float:
    """Σ over the selected tensors of ‖θ − θ_init‖_p."""
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
    """Rescales each selected tensor to its reference_params's Frobenius norm ("sphere"), or down to it ("ball"). 0 stays 0."""

    def rescale(w: jax.Array, w0: jax.Array, chosen: bool) -> jax.Array:
        if not chosen or constraint == "none":
            return w
        size, radius = norm(w), norm(w0)
        factor = radius / jnp.where(size > 0, size, 1.0)
        return w * (factor if constraint == "sphere" else jnp.minimum(1.0, factor))

    return jax.tree.map(rescale, params, reference_params, selection)


def penalty(ce: jax.Array, eps: jax.Array | float, hinge: str) -> jax.Array:
    """max(0, mean(ce) − ε) for hinge "mean", mean(max(0, ce − ε)) for "sample"; `ce [B]` in nats."""
    return jax.nn.relu(ce.mean() - eps) if hinge == "mean" else jax.nn.relu(ce - eps).mean()


def start(key: jax.Array, reference_params: Params, selection: Selection, kind: str) -> Params:
    """Parameters with the selected tensors at their starting point; the others are the reference_params's."""
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
    """How far θ_s has come: `distance` ‖θ_s − θ_init,s‖, `distance_ratio` (over 2‖θ_init,s‖, its most on the sphere) and
    `cosine` of the angle between them, all over the selected tensors together (Frobenius)."""
    chosen = jax.tree.leaves(selection)

    def pick(tree: Params) -> jax.Array:
        leaves = zip(jax.tree.leaves(tree), chosen, strict=True)
        return jnp.concatenate([leaf.ravel() for leaf, wanted in leaves if wanted])

    w, w0 = pick(params), pick(reference_params)
    gap = norm(w - w0)
    cosine = w @ w0 / jnp.maximum(norm(w) * norm(w0), 1e-30)
    return {"distance": gap, "distance_ratio": gap / (2 * norm(w0)), "cosine": cosine}


def d3_loss(config: D3Config, model: Model, selection: Selection) -> Loss:
    """The loss of D3: λ · penalty − distance, over (λ + 1) if scaled; reports `clean_loss` and the geometry.

    θ_init comes in `data.reference_params`, the numbers in `data.loss_inputs` (`loss_inputs(config)`).
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
    """The numbers of D3's loss, float32: `lam`, `eps`, and the `divisor` λ + 1 or 1."""
    divisor = config.lam + 1 if config.scale and config.lam > 1 else 1.0
    return {
        name: jnp.float32(value)
        for name, value in (("lam", config.lam), ("eps", config.eps), ("divisor", divisor))
    }


def make_d3(config: D3Config, info: DataInfo) -> Repair:
    """D3 as a repair. The trace holds `loss`, `clean_loss`, `accuracy` (of the batches), `distance`, `distance_ratio`, `cosine`.

    Deviation: an epoch is cut into equal batches (2,500 images: ten of 250), where the authors' code ends on a short one.
    """

    def loop(key: jax.Array, model: Model, variables: Variables, reserved: Split) -> TrainLoop:
        reference_params = variables.params
        selection = select(reference_params, config.tensors)
        place = jax.jit(
            lambda key, reference_params: start(key, reference_params, selection, config.start)
        )  # op by op it compiles for 2 s
        begin = variables._replace(params=place(stream(key, "start"), reference_params))
        return repair_loop(
            stream(key, "steps"), begin, reserved,
            loss=d3_loss(config, model, selection),
            project=lambda params, data: project(params, data.reference_params, selection, config.constraint),
            reference_params=reference_params, loss_inputs=loss_inputs(config),
            schedule=config.schedule, info=info,
        )  # fmt: skip

    def check(model: Model, shapes: Variables, size: int) -> None:
        select(shapes.params, config.tensors)

    return one_loop(loop, check)
