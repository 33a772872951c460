"""One optimiser step, and the parts that training and every repair share: a loss, a source of batches, a projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.images import as_float
from ..core.losses import accuracy, cross_entropy
from ..core.random import stream
from ..core.types import Attack, Batch, Metrics, Model, Params, Split, TrainState, Variables
from ..data.batching import batch_rows
from ..runtime.sharding import shard_batch

Loss = Callable[[Params, Params, Batch, jax.Array, Any], tuple[jax.Array, tuple[Params, Metrics]]]
"""`loss(params, batch_stats, batch, key, data) -> (value, (new batch_stats, metrics))`.

`data` is what the step was called with: arrays that a loss needs besides the batch (D3's initial weights, a frozen model)
come in there and not in a closure, which would bake them into the compiled program.
"""

Project = Callable[[Params, Any], Params]
"""`project(params, data) -> params`, applied after every update."""

Batches = Callable[[jax.Array, jax.Array, Any], Batch]
"""`batches(key, step, data) -> Batch`: what a step sees, drawn and prepared inside it."""

Rows = Callable[[jax.Array, jax.Array], jax.Array]
"""`rows(key, step) -> [B]`: which images of the set a step sees."""

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class TrainData(NamedTuple):
    """What a step needs, kept on the device: `split`, `poisoned [N]` bool, the attack's `trigger`, the parameters `reference_params`
    that a repair measures itself against (None without one), and numbers of its loss that members may differ in (`loss_inputs`).

    Where the images do not fit the device `split` is None and `batch` is the step's own, brought to it: uint8 images, true
    labels, and which rows are the attacker's."""

    split: Split | None
    poisoned: jax.Array | None
    trigger: Any
    reference_params: Params | None = None
    loss_inputs: dict[str, jax.Array] | tuple[()] = ()
    batch: Batch | None = None


def init_state(
    variables: Variables,
    tx: optax.GradientTransformation,
    key: jax.Array,
    trigger: Any = (),
    trigger_tx: optax.GradientTransformation | None = None,
) -> TrainState:
    """A state at step 0; with the `trigger` too where it is trained by `trigger_tx`."""
    opt_state = tx.init(variables.params)
    if trigger_tx is not None:
        opt_state = (opt_state, trigger_tx.init(trigger))
    return TrainState(
        jnp.zeros((), jnp.int32), variables, opt_state, key, () if trigger_tx is None else trigger
    )


def make_train_step(
    tx: optax.GradientTransformation,
    *,
    loss: Loss,
    batches: Batches,
    project: Project = lambda params, data: params,
    trigger_tx: optax.GradientTransformation | None = None,
) -> Step:
    """Builds `step(state, data) -> (state, metrics)`, un-jitted: the caller jits, vmaps, scans, shards or donates it.

    Randomness follows from (state.key, state.step) alone. `project` maps the updated parameters back into their set.
    `metrics` holds float32 scalars: `loss` and what the loss function reports. With `trigger_tx` the state's trigger is trained
    too, by the gradient of the same loss and of its own `penalty`, which is reported.
    """

    def step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(stream(state.key, "loss"), state.step)

        def value(params: Params, trigger: Any):
            drawn_from = data if trigger_tx is None else data._replace(trigger=trigger)
            batch = batches(state.key, state.step, drawn_from)
            value, (batch_stats, metrics) = loss(
                params, state.variables.batch_stats, batch, key, data
            )
            if batch.joint is None:
                return value, (batch_stats, metrics, ())
            metrics = metrics | {"penalty": batch.joint.penalty}
            return value + batch.joint.penalty, (batch_stats, metrics, batch.joint.trigger)

        params, trigger, opt_state = state.variables.params, state.trigger, state.opt_state
        if trigger_tx is None:
            (total, (batch_stats, metrics, _)), grads = jax.value_and_grad(value, has_aux=True)(
                params, trigger
            )
        else:
            opt_state, trigger_state = opt_state
            found = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, trigger)
            (total, (batch_stats, metrics, trigger)), (grads, trigger_grads) = found
            moves, trigger_state = trigger_tx.update(trigger_grads, trigger_state, state.trigger)
            trigger = optax.apply_updates(trigger, moves)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = project(optax.apply_updates(params, updates), data)
        opt_state = opt_state if trigger_tx is None else (opt_state, trigger_state)
        state = TrainState(
            state.step + 1, Variables(params, batch_stats), opt_state, state.key, trigger
        )
        return state, {"loss": total, **metrics}

    return step


def make_batches(*, rows: Rows, augment: Callable, attack: Attack | None = None) -> Batches:
    """Draws a batch from `TrainData`, poisons it, then augments it: the trigger moves with the image."""

    def batches(key: jax.Array, step: jax.Array, data: TrainData) -> Batch:
        batch = data.batch
        if batch is None:
            # Drawn from data that every device holds: unless the rows are split, each would compute the whole batch.
            mine = shard_batch(rows(key, step))
            batch = Batch(
                data.split.images[mine], data.split.labels[mine], data.poisoned[mine], rows=mine
            )
        batch = batch._replace(images=as_float(batch.images))
        if attack is not None:
            batch = attack.poison(
                data.trigger, jax.random.fold_in(stream(key, "poison"), step), batch
            )
        return batch._replace(
            images=augment(jax.random.fold_in(stream(key, "augment"), step), batch.images)
        )

    return batches


def make_rows(*, size: int, steps_per_epoch: int, batch_size: int) -> Rows:
    """Builds `rows(key, step) -> [batch_size]`: which images a step sees, every epoch a fresh shuffle."""

    def rows(key: jax.Array, step: jax.Array) -> jax.Array:
        return batch_rows(
            stream(key, "rows"),
            step,
            size=size,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
        )

    return rows


def classification_loss(model: Model) -> Loss:
    """Mean cross-entropy in train mode; reports the batch's `accuracy`."""

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss
