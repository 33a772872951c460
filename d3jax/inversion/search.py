"""The search for small triggers of many classes in one program: train step and cost schedule."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
from .config import InversionConfig
from .parameters import count_of, random_parameters, size_of, stamp, tidy, trigger_of

stamp_all = jax.vmap(stamp, in_axes=(0, None), out_axes=1)
"""Return images [B, H, W, C] with each of L triggers, as [B, L, H, W, C].

The batch is the first axis, as a mesh splits it.
"""


def logits_of(model: Model, variables: Variables, stamped: jax.Array) -> jax.Array:
    """Return a model's logits [B, L, K] of B images with each of L triggers, in eval mode.

    `stamped` are the images [B, L, H, W, C].
    """
    logits = model.apply(variables, stamped.reshape(-1, *stamped.shape[2:]), train=False).logits
    return logits.reshape(*stamped.shape[:2], -1)


class SearchState(NamedTuple):
    """The progress of trigger inversion for each of L labels: costs, triggers to keep, and counts.

    - The schedule of the `cost`: `begun`, passes in a row at the threshold while the cost is 0;
      `above` and `below`, passes in a row at the threshold and below it; whether the cost `went_up`
      and `went_down`.
    - The trigger to keep: its parameters `raw`, its `least` size, its `count` of pixels, and the
      passes since then without a smaller one (`stale`).
    - The run: whether the label is `active`, and for how many `passes` it was.
    - Sums over the current pass: `turned` images of the `seen` ones, and the mean `size`. An image
      is turned where the model predicts the label.
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
    """Return the `TrainState` at the start of trigger inversion, with random triggers of L labels.

    Its carry is a `SearchState`. `labels` are [L], and `shape` is that of an image.
    """

    def place(label: jax.Array) -> Params:
        return random_parameters(
            jax.random.fold_in(stream(key, "start"), label), shape, config.preset
        )

    raw = jax.vmap(place)(labels)
    number, no, zero = (jnp.zeros(len(labels), dtype) for dtype in (jnp.int32, bool, jnp.float32))
    progress = SearchState(
        cost=zero if config.wait else zero + config.cost,
        begun=number,
        above=number,
        below=number,
        went_up=no,
        went_down=no,
        raw=raw,
        least=zero + jnp.inf,
        count=zero + jnp.inf,
        stale=number,
        active=~no,
        passes=number,
        turned=zero,
        seen=zero,
        size=zero,
    )
    return init_state(Variables(raw, {}), _adam(config), stream(key, "steps"), progress)


def _adam(config: InversionConfig) -> optax.GradientTransformation:
    return optax.adam(config.lr, config.b1, config.b2)


def inversion_step(model: Model, config: InversionConfig, batches: Batches, per_pass: int) -> Step:
    """Build the train step of trigger inversion, which updates the triggers of all labels at once.

    It is a step of Adam for every label on CE(f(stamped), label) + cost · size. After every
    `per_pass` steps, `adapt` ends the pass. The model's variables are `data.reference_params`, the
    labels [L] are `data.loss_inputs["labels"]`, and the carry is a `SearchState`.
    """
    return make_train_step(
        _adam(config),
        loss=inversion_loss(model, config),
        batches=batches,
        view=_with_cost,
        project=_clipped if config.preset == "fixed" else keep_params,
        advance=_end_of_pass(config, per_pass),
    )


def _with_cost(data: TrainData, progress: SearchState) -> TrainData:
    """Return the data of trigger inversion with the current cost of each label as a loss input."""
    return data._replace(loss_inputs=data.loss_inputs | {"cost": progress.cost})


def _clipped(raw: Params, data: TrainData) -> Params:
    """Return the raw parameters of inverted triggers clipped to [0, 1]."""
    return jax.tree.map(lambda x: jnp.clip(x, 0, 1), raw)


def inversion_loss(model: Model, config: InversionConfig) -> Loss:
    """Build trigger inversion's loss: the sum over labels of CE(f(stamped), label) + cost · size.

    For every label it reports the cross-entropy `ce`, the `size`, how many images were `seen`, and
    how many of them `turned` to the label. For pixel, images of the label's own class do not count.
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
    """Build the function that completes a step of trigger inversion, and adapts costs after a pass.

    It adds the step to the sums of the pass, and ends the pass by `adapt`. It is an `Advance` of
    `make_train_step`.
    """

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


def _added(progress: SearchState, found: Reported, per_pass: int) -> SearchState:
    """Add a trigger inversion step's image counts and sizes to the sums of the current pass."""
    return progress._replace(
        turned=progress.turned + found["turned"],
        seen=progress.seen + found["seen"],
        size=progress.size + found["size"] / per_pass,
    )


def _metrics(progress: SearchState, found: Reported) -> Metrics:
    """Return a trigger inversion step's metrics: means over labels, number of active labels."""
    return {
        "loss": (found["ce"] + progress.cost * found["size"]).mean(),
        "success": (found["turned"] / jnp.maximum(found["seen"], 1)).mean(),
        "size": found["size"].mean(),
        "active": progress.active.sum().astype(jnp.float32),
    }


HIGHEST = 1e6
"""The highest cost: the size of a trigger has a million times the weight of the cross-entropy."""


def adapt(
    progress: SearchState, before: Params, after: Params, config: InversionConfig
) -> tuple[Params, SearchState]:
    """End a pass of trigger inversion: adapt costs, keep smaller triggers, stop finished labels.

    Returns the raw parameters to continue with and the new search state. `before` and `after` are
    the raw parameters around the pass's last step. At cost 0 (`wait`), `patience` passes in a row
    at the threshold set the initial cost. From then on, each such row raises it, and each row below
    the threshold lowers it. A label is done when its cost has both risen and fallen and no smaller
    trigger was found in `stop` passes.

    The cost rises to `HIGHEST` at most, which counts as a fall. Otherwise the cost of a trigger
    that cannot shrink, such as one saturated pixel, doubles until it overflows.

    A trigger of pixel is kept only if both its size and its count of pixels are smaller. The search
    then continues from it, tidied.
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
        least=jnp.where(better, progress.size, progress.least),
        count=jnp.where(better, count, progress.count),
        stale=stale,
        active=progress.active & ~done,
        passes=progress.passes + progress.active,
        turned=jnp.zeros_like(progress.turned),
        seen=jnp.zeros_like(progress.seen),
        size=jnp.zeros_like(progress.size),
    )
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
    cost, highest = jnp.minimum(cost, HIGHEST), cost >= HIGHEST
    return after, kept._replace(
        cost=cost,
        begun=jnp.where(first, 0, begun),
        above=jnp.where(rise, 0, above),
        below=jnp.where(fall, 0, below),
        went_up=(progress.went_up & ~first) | rise,
        went_down=(progress.went_down & ~first) | fall | highest,
    )


def _choose(which: jax.Array, yes: Params, no: Params) -> Params:
    """Return for each of L labels the arrays of `yes` if `which` [L] is true, else of `no`."""
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
    """Return an inversion's parameters to keep and number of passes of each label, on the host.

    The raw parameters are arrays [L, ...]. Where no trigger was kept, they are those after the last
    step. A pass is a fixed number of steps.
    """
    return jax.device_get(_best(state))


def only(state: TrainState, rows: np.ndarray) -> TrainState:
    """Return the train state of trigger inversion, restricted to the labels at indices `rows`."""

    def take(leaf: np.ndarray) -> Any:
        """Return the chosen labels' part of an array, or a scalar as it is."""
        return jnp.asarray(leaf[rows]) if leaf.ndim else leaf

    parts = {name: getattr(state, name) for name in ("variables", "opt_state", "carry")}
    return dataclasses.replace(state, **jax.tree.map(take, jax.device_get(parts)))
