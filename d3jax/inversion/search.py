"""The search for small triggers of many classes in one program: its parameters, one step, and the schedule of its cost."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.fields import check_fields, option, presets
from ..core.losses import cross_entropy
from ..core.random import stream
from ..core.types import Batch, Metrics, Model, Params, TrainState, Variables
from ..training.step import (
    Advance,
    Batches,
    Loss,
    Reported,
    Step,
    TrainData,
    init_state,
    keep_params,
    make_train_step,
)

LEVEL = 1 / 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """A preset and what departs from it. The cost, the weight of the trigger's size in the loss, is adapted after every pass.

    `nc`: Neural Cleanse's mask and pattern through tanh, with its official schedule (Wang et al., 2019). `fixed`: raw mask and pattern,
    clipped, at a fixed cost; the last trigger is kept (the first MCL code). `pixel`: two additive patterns, one up and one down, with a
    smooth count of the pixels they change, on images of other classes only (Tao et al., CVPR 2022; the second MCL code); that it
    stops early is ours.
    """

    preset: Literal["nc", "fixed", "pixel"] = option(
        "nc", "what is searched, and where all below comes from unless given"
    )
    passes: int = option(1000, "passes at most", low=1)
    batch_size: int = option(32, "images a step", low=1)
    batches: int = option(31, "steps a pass (0: all images once)", low=0)
    lr: float = option(0.1, "Adam's learning rate", above=0)
    b1: float = option(0.5, "decay of its first moment", low=0, high=1)
    b2: float = option(0.9, "decay of its second moment", low=0, high=1)
    threshold: float = option(
        0.99,
        "share of a pass's images that a trigger must turn to be kept; but for pixel the class's own images count",
        low=0,
        high=1,
    )
    cost: float = option(1e-3, "the first cost", low=0)
    wait: bool = option(
        True, "the cost is 0 until `patience` passes in a row were at the threshold"
    )
    patience: int = option(
        5,
        "so many passes in a row at the threshold raise the cost, so many below lower it (0: never)",
        low=0,
    )
    up: float = option(2.0, "factor of the cost when it rises", low=1)
    down: float = option(2**1.5, "divisor of the cost when it falls", low=1)
    stop: int = option(
        25, "passes without a smaller trigger after which a class is done (0: never)", low=0
    )

    def __post_init__(self) -> None:
        check_fields(self)


PRESETS = presets(
    "preset",
    InversionConfig(preset="nc"),
    InversionConfig(
        preset="fixed",
        lr=0.005,
        b1=0.9,
        b2=0.999,
        batches=0,
        threshold=0.0,
        cost=0.01,
        wait=False,
        patience=0,
        stop=30,
    ),
    InversionConfig(
        preset="pixel",
        batches=0,
        threshold=0.9,
        wait=False,
        patience=10,
        up=1.5,
        down=1.5**1.5,
        stop=50,
    ),
)


class Trigger(NamedTuple):
    """An image x becomes clip((1 − `mask`) · x + `pattern`, 0, 1): `mask [..., H, W, 1]` in [0, 1] is how much of each pixel goes,
    `pattern [..., H, W, C]` what is added, which for Neural Cleanse is mask · Δ and for an additive trigger may be negative."""

    mask: jax.Array
    pattern: jax.Array


def stamp(trigger: Trigger, images: jax.Array) -> jax.Array:
    """`images [B, H, W, C]` in [0, 1] with one trigger."""
    return jnp.clip((1 - trigger.mask[None]) * images + trigger.pattern[None], 0, 1)


stamp_all = jax.vmap(stamp, in_axes=(0, None), out_axes=1)
"""Images [B, H, W, C] with each of L triggers: [B, L, H, W, C]. The batch comes first, as a mesh splits it."""


def logits_of(model: Model, variables: Variables, stamped: jax.Array) -> jax.Array:
    """Logits [B, L, K] of images [B, L, H, W, C], in eval mode."""
    logits = model.apply(variables, stamped.reshape(-1, *stamped.shape[2:]), train=False).logits
    return logits.reshape(*stamped.shape[:2], -1)


class Progress(NamedTuple):
    """Where the search of every label [L] stands.

    `cost` and what moves it (passes in a row `begun` at cost 0, `above` and `below` the threshold; whether it `went_up` and
    `went_down`); the trigger to keep (`raw`, its `least` size and `count` of pixels), for how many passes there was no smaller one
    (`stale`); whether it is `active` and for how many `passes` it was; sums over the pass that runs (`turned` of `seen` images, `size`).
    """

    cost: jax.Array
    begun: jax.Array
    above: jax.Array
    below: jax.Array
    went_up: jax.Array
    went_down: jax.Array
    raw: Params
    least: jax.Array
    count: jax.Array
    stale: jax.Array
    active: jax.Array
    passes: jax.Array
    turned: jax.Array
    seen: jax.Array
    size: jax.Array


@jax.jit(static_argnums=(2, 3))
def start(
    key: jax.Array, labels: jax.Array, shape: tuple[int, int, int], config: InversionConfig
) -> TrainState:
    """Return the state before the first step for `labels` [L] and images of `shape`; its carry is `Progress`."""

    def place(label: jax.Array) -> Params:
        return _random(jax.random.fold_in(stream(key, "start"), label), shape, config.preset)

    raw = jax.vmap(place)(labels)
    number, no, zero = (jnp.zeros(len(labels), dtype) for dtype in (jnp.int32, bool, jnp.float32))
    progress = Progress(
        cost=zero if config.wait else zero + config.cost, begun=number, above=number, below=number, went_up=no, went_down=no,
        raw=raw, least=zero + jnp.inf, count=zero + jnp.inf, stale=number, active=~no, passes=number, turned=zero, seen=zero, size=zero,
    )  # fmt: skip
    return init_state(Variables(raw, {}), _adam(config), stream(key, "steps"), progress)


def _adam(config: InversionConfig) -> optax.GradientTransformation:
    return optax.adam(config.lr, config.b1, config.b2)


def _random(key: jax.Array, shape: tuple[int, int, int], preset: str) -> Params:
    height, width, _ = shape
    first, second = jax.random.split(key)
    if preset == "pixel":
        return {"more": jax.random.uniform(first, shape), "less": jax.random.uniform(second, shape)}
    raw = {
        "mask": jax.random.uniform(first, (height, width, 1)),
        "pattern": jax.random.uniform(second, shape),
    }
    return (
        jax.tree.map(lambda x: jnp.arctanh((x - 0.5) * (2 - 1e-7)), raw) if preset == "nc" else raw
    )


def trigger_of(raw: Params, preset: str) -> Trigger:
    """The triggers that raw parameters [L, ...] stand for."""
    if preset == "pixel":
        change = jnp.clip(raw["more"], 0, 1) - jnp.clip(raw["less"], 0, 1)
        return Trigger(jnp.zeros_like(change[..., :1]), change)
    mask, pattern = (
        (raw["mask"], raw["pattern"])
        if preset == "fixed"
        else map(_squash, (raw["mask"], raw["pattern"]))
    )
    return Trigger(mask, mask * pattern)


def tidy(raw: Params, preset: str) -> Params:
    """What is kept of raw parameters: for pixel both patterns clipped, without values under one 8-bit level."""
    if preset != "pixel":
        return raw
    return jax.tree.map(lambda part: jnp.where(part < LEVEL, 0, jnp.clip(part, 0, 1)), raw)


def size_of(raw: Params, preset: str) -> jax.Array:
    """What is kept small [L]: ‖mask‖₁, or for pixel the smooth count Σ max_c(tanh(p / 10) / 2 + 1/2) of both patterns."""
    if preset == "pixel":
        # The largest first: a maximum of what a compiler may compute twice with other rounding can equal none of them, and its gradient is 0/0.
        return sum(_squash(part.max(-1) / 10).sum((-2, -1)) for part in raw.values())
    return trigger_of(raw, preset).mask.sum((-3, -2, -1))


def count_of(raw: Params) -> jax.Array:
    """How many pixels [L] an additive trigger of tidied parameters changes."""
    return (trigger_of(raw, "pixel").pattern != 0).any(-1).sum((-2, -1)).astype(jnp.float32)


def _squash(x: jax.Array) -> jax.Array:
    return jnp.tanh(x) / (2 - 1e-7) + 0.5


def inversion_step(model: Model, config: InversionConfig, batches: Batches, per_pass: int) -> Step:
    """Build one step of Adam for every label on CE(f(stamped), label) + cost · size; after every `per_pass` of them `adapt`.

    The model is `data.reference_params`, the labels [L] `data.loss_inputs["labels"]`, the carry is `Progress`.
    """
    return make_train_step(
        _adam(config),
        loss=inversion_loss(model, config),
        batches=batches,
        view=_with_cost,
        project=_clipped if config.preset == "fixed" else keep_params,
        advance=_end_of_pass(config, per_pass),
    )


def _with_cost(data: TrainData, progress: Progress) -> TrainData:
    """Return the data with the costs [L] of the sizes."""
    return data._replace(loss_inputs=data.loss_inputs | {"cost": progress.cost})


def _clipped(raw: Params, data: TrainData) -> Params:
    """Return raw parameters in [0, 1]."""
    return jax.tree.map(lambda x: jnp.clip(x, 0, 1), raw)


def inversion_loss(model: Model, config: InversionConfig) -> Loss:
    """Build the sum over labels [L] of CE(f(stamped), label) + cost · size.

    Reports, for every label, the cross-entropy `ce`, the `size`, how many images were `seen` and how many of them `turned`; for
    pixel those of the label's own class do not count.
    """

    def loss(raw: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: TrainData):
        labels = data.loss_inputs["labels"]
        wanted = jnp.broadcast_to(labels[None], (len(batch.labels), len(labels)))  # [B, L]
        counted = jnp.ones_like(wanted, bool)
        if config.preset == "pixel":
            counted = batch.labels[:, None] != wanted
        seen = counted.sum(0, dtype=jnp.float32)
        stamped = stamp_all(trigger_of(raw, config.preset), batch.images)
        logits = logits_of(model, data.reference_params, stamped)
        ce = jnp.where(counted, cross_entropy(logits, wanted), 0).sum(0) / jnp.maximum(seen, 1)
        size = size_of(raw, config.preset)
        turned = (counted & (logits.argmax(-1) == wanted)).sum(0, dtype=jnp.float32)
        found = {"ce": ce, "turned": turned, "seen": seen, "size": size}
        return (ce + data.loss_inputs["cost"] * size).sum(), (batch_stats, found)

    return loss


def _end_of_pass(config: InversionConfig, per_pass: int) -> Advance:
    """Build what adds a step to the sums of its pass and, where that ends, goes on with what `adapt` says."""

    def advance(before: TrainState, after: TrainState, found: Reported, data: TrainData):
        progress = _added(before.carry, found, per_pass)
        first, last = before.variables.params, after.variables.params
        ended, adapted = after.step % per_pass == 0, adapt(progress, first, last, config)
        last, progress = jax.tree.map(
            lambda now, then: jnp.where(ended, then, now), (last, progress), adapted
        )
        state = dataclasses.replace(after, variables=Variables(last, {}), carry=progress)
        return state, _metrics(progress, found)

    return advance


def _added(progress: Progress, found: Reported, per_pass: int) -> Progress:
    """Return the progress with a step's images and sizes in its sums."""
    return progress._replace(
        turned=progress.turned + found["turned"],
        seen=progress.seen + found["seen"],
        size=progress.size + found["size"] / per_pass,
    )


def _metrics(progress: Progress, found: Reported) -> Metrics:
    """Return a step's means over the labels, and how many labels are still active."""
    return {
        "loss": (found["ce"] + progress.cost * found["size"]).mean(),
        "success": (found["turned"] / jnp.maximum(found["seen"], 1)).mean(),
        "size": found["size"].mean(),
        "active": progress.active.sum().astype(jnp.float32),
    }


def adapt(
    progress: Progress, before: Params, after: Params, config: InversionConfig
) -> tuple[Params, Progress]:
    """The end of a pass for every label: the raw parameters to go on with, and what is kept, what is done, the new cost.

    `before` and `after` are the raw parameters around the pass's last step. At cost 0 (`wait`), `patience` passes in a row at the
    threshold give it its first value; from there each such row raises it and each row below lowers it. A label is done when its cost
    has gone both ways and nothing smaller came in `stop` passes. A trigger of pixel is kept only if both its size and its count of
    pixels are smaller, and the search goes on from it, tidied.
    """
    enough = progress.turned >= config.threshold * progress.seen
    better = progress.active & enough & (progress.size < progress.least)
    candidate, count = after, progress.count
    if config.preset == "pixel":
        candidate = tidy(before, config.preset)
        count = count_of(candidate)
        better = better & (count < progress.count)
        after = _choose(better, candidate, after)
    stale = jnp.where(better, 0, progress.stale + jnp.isfinite(progress.least))
    moved = (progress.went_up & progress.went_down) if config.patience else True
    done = moved & (stale >= config.stop) if config.stop else jnp.zeros_like(progress.active)
    last = config.preset == "fixed"
    kept = progress._replace(
        raw=_choose(progress.active if last else better, candidate, progress.raw),
        least=jnp.where(better, progress.size, progress.least), count=jnp.where(better, count, progress.count), stale=stale,
        active=progress.active & ~done, passes=progress.passes + progress.active,
        turned=jnp.zeros_like(progress.turned), seen=jnp.zeros_like(progress.seen), size=jnp.zeros_like(progress.size),
    )  # fmt: skip
    if not config.patience:
        return after, kept
    begun = jnp.where((progress.cost == 0) & enough, progress.begun + 1, 0)
    first = begun >= config.patience
    above = jnp.where(enough, jnp.where(first, 0, progress.above) + 1, 0)
    below = jnp.where(enough, 0, jnp.where(first, 0, progress.below) + 1)
    rise, fall = above >= config.patience, below >= config.patience
    cost = (
        jnp.where(first, config.cost, progress.cost)
        * jnp.where(rise, config.up, 1)
        / jnp.where(fall, config.down, 1)
    )
    return after, kept._replace(
        cost=cost, begun=jnp.where(first, 0, begun), above=jnp.where(rise, 0, above), below=jnp.where(fall, 0, below),
        went_up=(progress.went_up & ~first) | rise, went_down=(progress.went_down & ~first) | fall,
    )  # fmt: skip


def _choose(which: jax.Array, yes: Params, no: Params) -> Params:
    """Of two trees of arrays [L, ...] one for each label [L]."""
    return jax.tree.map(
        lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), yes, no
    )


@jax.jit
def _best(state: TrainState) -> tuple[Params, jax.Array]:
    progress = state.carry
    return _choose(
        jnp.isfinite(progress.least), progress.raw, state.variables.params
    ), progress.passes


def kept_of(state: TrainState) -> tuple[Params, np.ndarray]:
    """The raw parameters [L, ...] to keep, where there are none the last ones, and the passes [L]; on the host."""
    return jax.device_get(_best(state))


def only(state: TrainState, rows: np.ndarray) -> TrainState:
    """Return the state of the labels in `rows` alone."""

    def take(leaf: np.ndarray) -> Any:
        """Return the rows of an array: the labels' axis is the first of every one."""
        return jnp.asarray(leaf[rows]) if leaf.ndim else leaf

    parts = {name: getattr(state, name) for name in ("variables", "opt_state", "carry")}
    return dataclasses.replace(state, **jax.tree.map(take, jax.device_get(parts)))
