"""UNIT, automated neural distribution tightening (Cheng et al., ECCV 2024).

Backdoors use activations that are larger than any clean image causes. UNIT learns a cap for every
activation after a ReLU, as low as the clean accuracy allows:

    min_cap  CE(f_cap(x), y) + c · Σ_sites mean(cap)

The weight c rises while the accuracy on held-out images stays near that of the model, and falls
otherwise. The smallest caps that kept the accuracy are the result. They become part of the network.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...config.fields import check_fields, option
from ...core.images import as_float
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Outputs, Repair, Repaired, Split, TrainState, Variables
from ...data.batched import batched_sums
from ...training.loop import Hooks, fit, trace_of
from ...training.split_loop import split_loop
from ...training.step import Advance, Loss
from .common import EVAL_BATCH
from .held_out import check_divisible, divide, held_out_option, traced_accuracy
from .pruning import check_channels

CAPS = "caps"
"""The name of the caps among the parameters of a capped network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNITConfig:
    """Settings of UNIT, which caps activations as low as the clean accuracy allows.

    The defaults are the authors' program's: caps begin at the mean plus 4 standard deviations over
    80 % of the reserved images, and 300 steps of Adam on all of these images follow. The other 20 %
    say whether the accuracy is kept.
    """

    spread: float = option(4.0, "standard deviations above the mean at which caps begin", low=0)
    steps: int = option(300, "steps of Adam", low=1)
    rate: float = option(1e-3, "learning rate of Adam, with b1 0.5 and b2 0.9", above=0)
    cost: float = option(1e-3, "c, first weight of the caps", above=0)
    patience: int = option(5, "steps in a row after which c rises or falls", low=1)
    drop: float = option(0.03, "accuracy on held-out images that the caps may cost", low=0, high=1)
    held_out: float = held_out_option()
    batch_size: int = option(0, "images per step (0: all that are not held out)", low=0)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair UNIT with these settings for the data set that `info` describes."""
        return make_unit(self, info)


def sites_of(model: Model) -> tuple[str, ...]:
    """Return the names of the activations after a BatchNorm layer and its ReLU."""
    return tuple(dict.fromkeys(norm.output for norm in model.channels))


@functools.lru_cache(maxsize=8)
def capped(model: Model) -> Model:
    """Return the network with caps: its parameters have an array for each site under `caps`.

    `init` gives caps of infinity, which change nothing. An `edit` is applied before the cap.
    """

    def init(key: jax.Array) -> Variables:
        variables = model.init(key)
        assert model.activations is not None  # a model with channels names its activations
        shapes = model.activations()
        caps = {name: jnp.full(shapes[name].shape, jnp.inf) for name in sites_of(model)}
        return variables._replace(params=variables.params | {CAPS: caps})

    def apply(variables: Variables, images: jax.Array, *, train: bool, edit: Any = None) -> Outputs:
        params = dict(variables.params)
        caps = params.pop(CAPS)
        edits = dict(edit or {})
        for name, cap in caps.items():
            edits[name] = _cut(cap, edits.get(name))
        inner = variables._replace(params=params)
        return model.apply(inner, images, train=train, edit=edits)

    return Model(init, apply, model.activations, model.channels)


def _cut(cap: jax.Array, first: Callable[[jax.Array], jax.Array] | None):
    def edit(x: jax.Array) -> jax.Array:
        x = first(x) if first else x
        return jnp.minimum(x, cap.astype(x.dtype))

    return edit


def first_caps(
    model: Model, variables: Variables, images: np.ndarray, spread: float
) -> dict[str, jax.Array]:
    """Return the mean plus `spread` standard deviations of every activation over images."""
    sites = sites_of(model)

    @jax.jit
    def sums(variables: Variables, images: jax.Array, valid: jax.Array):
        features = model.apply(variables, as_float(images), train=False).features
        kept = {name: features[name].astype(jnp.float32) for name in sites}
        weight = {name: valid.reshape(-1, *[1] * (one.ndim - 1)) for name, one in kept.items()}
        return {
            name: (jnp.sum(one * weight[name], 0), jnp.sum(one**2 * weight[name], 0))
            for name, one in kept.items()
        }

    found: Mapping[str, Any] = batched_sums(
        lambda images, rows, valid: sums(variables, images, valid), images, batch_size=EVAL_BATCH
    )
    count = len(images)
    caps = {}
    for name, (total, squares) in found.items():
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0) * count / max(1, count - 1))
        caps[name] = jnp.asarray(mean + spread * deviation, jnp.float32)
    return caps


def size_of(caps: dict[str, jax.Array]) -> jax.Array:
    """Return Σ mean(cap) over the capped activations."""
    return sum((jnp.mean(one) for one in caps.values()), jnp.float32(0))


def unit_loss(network: Model) -> Loss:
    """Build UNIT's loss of the caps: CE + c · Σ mean(cap).

    The model's parameters are `data.reference_params`, and c is `data.loss_inputs["cost"]`. The
    loss reports `clean_loss`, `caps` (Σ mean) and `accuracy`.
    """

    def loss(caps, batch_stats, batch, key, data):
        params = data.reference_params | {CAPS: caps}
        outputs = network.apply(Variables(params, batch_stats), batch.images, train=False)
        ce = cross_entropy(outputs.logits, batch.labels).mean()
        size = size_of(caps)
        reported = {
            "clean_loss": ce,
            "caps": size,
            "accuracy": accuracy(outputs.logits, batch.labels),
        }
        return ce + data.loss_inputs["cost"] * size, (batch_stats, reported)

    return loss


def adapted(carry: dict[str, Any], good: jax.Array, config: UNITConfig) -> dict[str, Any]:
    """Return the carry with c and its counters after a step that was `good` or not.

    c doubles after `patience` good steps in a row, and falls by 2^1.5 after as many bad ones. Below
    its first value, good steps bring it back to that value.
    """
    ups = jnp.where(good, carry["ups"] + 1, 0)
    downs = jnp.where(good, 0, carry["downs"] + 1)
    rises, falls = ups >= config.patience, downs >= config.patience
    cost = carry["cost"]
    higher = jnp.where(cost < config.cost, config.cost, 2 * cost)
    cost = jnp.where(rises, higher, jnp.where(falls, cost / 2**1.5, cost))
    return carry | {
        "cost": cost,
        "ups": jnp.where(rises, 0, ups),
        "downs": jnp.where(falls, 0, downs),
    }


def keep_smallest(network: Model, config: UNITConfig, least: float) -> Advance:
    """Build the `advance` of UNIT: it judges the caps after a step, keeps the smallest good ones.

    A step is good if the accuracy on `data.loss_inputs["judged"]` is at least `least`.
    """

    def advance(before: TrainState, after: TrainState, reported: Any, data: Any):
        caps, carry = after.variables.params, after.carry
        params = data.reference_params | {CAPS: caps}
        judged = Variables(params, after.variables.batch_stats)
        acc = traced_accuracy(network, judged, data.loss_inputs["judged"])
        good = acc >= least
        size = size_of(caps)
        better = good & (size < carry["size"])
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), caps, carry["caps"])
        carry = adapted(carry, good, config)
        carry |= {"caps": kept, "size": jnp.where(better, size, carry["size"])}
        more = {"held_out": acc, "cost": carry["cost"]}
        return dataclasses.replace(after, carry=carry), reported | more

    return advance


def make_unit(config: UNITConfig, info: DataInfo) -> Repair:
    """Return UNIT, the repair that caps the activations of a model.

    The repaired network is `capped(model)`. The trace holds `loss`, `clean_loss`, `caps`,
    `accuracy`, `held_out` (accuracy) and `cost`.

    Deviation: the kept caps are those whose accuracy was measured. The authors' program keeps those
    before the step.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        check_channels(model)
        network = capped(model)
        learned, judged = divide(key, reserved, config.held_out)
        judged = Split(*map(jnp.asarray, judged))
        caps = first_caps(model, variables, np.asarray(learned.images), config.spread)
        whole = float(jax.jit(traced_accuracy, static_argnums=0)(model, variables, judged))
        size = config.batch_size or len(learned.labels)
        carry = {
            "cost": jnp.float32(config.cost),
            "ups": jnp.int32(0),
            "downs": jnp.int32(0),
            "caps": jax.tree.map(jnp.copy, caps),
            "size": jnp.float32(jnp.inf),
        }
        loop = split_loop(
            stream(key, "caps"), Variables(caps, variables.batch_stats), learned,
            loss=unit_loss(network), tx=optax.adam(config.rate, b1=0.5, b2=0.9),
            steps=config.steps, steps_per_epoch=max(1, len(learned.labels) // size),
            batch_size=min(size, len(learned.labels)), reference_params=variables.params,
            loss_inputs={"judged": judged, "cost": carry["cost"]}, carry=carry,
            view=lambda data, carry: data._replace(
                loss_inputs=data.loss_inputs | {"cost": carry["cost"]}
            ),
            advance=keep_smallest(network, config, whole - config.drop),
        )  # fmt: skip
        state, records = fit(loop, hooks.within("caps"))
        params = dict(variables.params) | {CAPS: state.carry["caps"]}
        size = float(state.carry["size"])
        said = f"with a sum of means of {size:.3f}" if np.isfinite(size) else "as at the start"
        hooks.say(f"caps of {len(caps)} activations, {said}")
        return Repaired(Variables(params, variables.batch_stats), trace_of(records), network)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)
        check_divisible("defender", size)

    return Repair(repair, check, rule="defender", network=capped)
