"""The train step, and functions it is built from: losses, batch sources, updates of its carry.

`make_train_step` is the only function of d3jax that takes a gradient and applies an optimiser's
update. Whatever else a method changes from step to step is in `TrainState.carry`. The functions
`begin`, `view` and `advance` say what a step does with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ..config.recipes import NO_SAM, SamConfig
from ..core.images import as_float
from ..core.losses import accuracy, cross_entropy
from ..core.random import stream
from ..core.types import (
    Array,
    Attack,
    Batch,
    Metrics,
    Model,
    Params,
    Split,
    TrainState,
    Variables,
)
from ..data.batching import batch_rows
from ..runtime.sharding import shard_batch
from .sam import ascended

Reported = dict[str, Any]
"""The values that a loss reports: float32 scalars to log, and arrays that `advance` removes."""

Loss = Callable[[Params, Params, Any, jax.Array, Any], tuple[jax.Array, tuple[Params, Reported]]]
"""`loss(params, batch_stats, batch, key, data) -> (value, (new batch_stats, reported))`.

`data` is the step's argument after `view`. Arrays that a loss needs besides the batch, such as D3's
initial weights or a frozen model, must be in it. A closure would make them constants of the
compiled program.
"""

Project = Callable[[Params, Any], Params]
"""`project(params, data) -> params`: maps the parameters into their set after every update."""

Batches = Callable[[jax.Array, jax.Array, Any], Any]
"""`batches(key, step, data) -> batch`: draws and prepares the batch of a step, inside the step.

The batch is a `Batch`, or whatever the loss takes.
"""

Rows = Callable[[jax.Array, jax.Array], jax.Array]
"""`rows(key, step) -> [B]`: returns the row numbers of the images that a step sees."""

Begin = Callable[[TrainState, Any], Any]
"""`begin(state, data) -> carry`: returns the carry with which the gradient is taken."""

View = Callable[[Any, Any], Any]
"""`view(data, carry) -> data`: copies into the data what loss and batches read of the carry."""

Advance = Callable[[TrainState, TrainState, Reported, Any], tuple[TrainState, Metrics]]
"""`advance(before, after, reported, data) -> (state, metrics)`: completes a step after its update.

`before` is the state at the gradient and `after` the updated one. The returned `state` may have
another carry, or lack the update. `metrics` are the float32 scalars to log.
"""

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
"""`step(state, data) -> (state, metrics)`: makes one step, see `make_train_step`."""


class Learned(NamedTuple):
    """The value and optimiser state of a carry entry trained with the model, such as a trigger.

    `value` is a pytree of floats.
    """

    value: Any
    opt_state: optax.OptState


class TrainData(NamedTuple):
    """The device data that a train step reads: images, poison mask, trigger and inputs of the loss.

    `split` are the training images, `poisoned [N]` bool is the mask of the attacker's rows, and
    `trigger` is the attack's. `reference_params` are the parameters with which a repair compares
    the model (None without one). `loss_inputs` are further arrays that the loss reads. Members may
    differ in them.

    Where the images do not fit on the device, `split` is None and `batch` is brought to each step.
    It has uint8 images, true labels and the mask of the attacker's rows. `covers [N]` bool is the
    mask of the cover rows of an attack that has some.
    """

    split: Split | None
    poisoned: Array | None
    trigger: Any
    reference_params: Params = None
    loss_inputs: Any = ()
    batch: Batch | None = None
    covers: Array | None = None

    def resident(self) -> tuple[Array, Array, Array]:
        """Return a train loop's images, labels and poison mask, if the device holds the data set.

        Raises `ValueError` where the set is not on the device.
        """
        if self.split is None or self.poisoned is None:
            raise ValueError("the images are brought batch by batch: no data set is on the device")
        return self.split.images, self.split.labels, self.poisoned


def keep_params(params: Params, data: Any) -> Params:
    """Return the parameters unchanged: the default `project` of `make_train_step`."""
    return params


def keep_carry(state: TrainState, data: Any) -> Any:
    """Return the carry of a train state unchanged: the default `begin` of `make_train_step`."""
    return state.carry


def keep_data(data: Any, carry: Any) -> Any:
    """Return the data of a train step unchanged: the default `view` of `make_train_step`."""
    return data


def keep_update(
    before: TrainState, after: TrainState, reported: Reported, data: Any
) -> tuple[TrainState, Metrics]:
    """Return the updated train state and, as metrics, all values that the loss reported.

    It is the default `advance` of `make_train_step`.
    """
    return after, reported


def init_state(
    variables: Variables,
    tx: optax.GradientTransformation,
    key: jax.Array,
    carry: Any = (),
    trained: Mapping[str, optax.GradientTransformation] | None = None,
) -> TrainState:
    """Return a model's `TrainState` at step 0, with the initial state of the optimiser `tx`.

    The parts of `carry` that `trained` names, each with its own optimiser, become `Learned`.
    """
    if trained:
        carry = carry | {
            name: Learned(carry[name], trained[name].init(carry[name])) for name in trained
        }
    return TrainState(jnp.zeros((), jnp.int32), variables, tx.init(variables.params), key, carry)


def make_train_step(
    tx: optax.GradientTransformation,
    *,
    loss: Loss,
    batches: Batches,
    project: Project = keep_params,
    begin: Begin = keep_carry,
    view: View = keep_data,
    trained: Mapping[str, optax.GradientTransformation] | None = None,
    advance: Advance = keep_update,
    sam: SamConfig = NO_SAM,
) -> Step:
    """Build `step(state, data) -> (state, metrics)`, which draws a batch and takes a gradient step.

    The step is not jitted: the caller jits, vmaps, scans, shards or donates it. One step does, in
    this order:

    1. `carry = begin(state, data)`.
    2. `batch = batches(key, step, view(data, carry))`, then the loss of the batch. Its gradient is
       taken by the parameters and by the value of every `trained` part of the carry. With `sam`
       it is taken once more, at the parameters that `sam.ascended` returns. Running statistics and
       reported values are those of the first time.
    3. The update of the parameters by `tx`, then `params = project(params, data)`, and the update
       of every trained part by its own optimiser.
    4. `state, metrics = advance(before, after, reported, data)`.

    Randomness depends only on (state.key, state.step). Optimisers also get `step` and `data`
    (optax's extra arguments), for rates that come in the data or momentum that restarts.

    Args:
        tx: the optimiser of the parameters, whose state is `state.opt_state`.
        loss: the loss to minimise, see `Loss`. It may report under a trained part's name the part
            with updated running statistics. The update is then applied to that value.
        batches: draws the batch of a step, see `Batches`.
        project: maps the updated parameters back into their set.
        begin: makes the carry before the gradient (evolution: the parameters at the start of an
            update).
        view: shows the carry to loss and batches (a trained trigger, the cost of a search).
        trained: the optimiser of each entry of the carry that is trained with the model. The carry
            is then a dict, and each of these entries is a `Learned`.
        advance: makes the carry after the update and the metrics, and may reject the update
            (`accept_if`).
        sam: sharpness-aware minimisation, off at ρ 0.

    Returns:
        The step. Its metrics are float32 scalars: `loss`, the minimised value unless `advance`
        returns another, and those reported values that `advance` returns.

    Example:
        A trigger trained with the model by Adam, from the loss of the batches it is stamped on::

            trained = {"trigger": optax.adam(1e-2)}
            step = make_train_step(
                optax.sgd(0.1), loss=loss, batches=batches, trained=trained,
                view=lambda data, carry: data._replace(trigger=carry["trigger"].value),
            )
            state = init_state(variables, optax.sgd(0.1), key, {"trigger": trigger}, trained)
    """
    optimisers = {name: optax.with_extra_args_support(one) for name, one in (trained or {}).items()}
    tx = optax.with_extra_args_support(tx)

    def value(params: Params, values: dict[str, Any], state: TrainState, data: Any):
        seen = view(data, _with_values(state.carry, values))
        batch = batches(state.key, state.step, seen)
        key = jax.random.fold_in(stream(state.key, "loss"), state.step)
        return loss(params, state.variables.batch_stats, batch, key, seen)

    gradient = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)

    def step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        before = dataclasses.replace(state, carry=begin(state, data))
        parts = {name: before.carry[name] for name in optimisers}
        values = {name: part.value for name, part in parts.items()}
        params, extra = state.variables.params, {"step": state.step, "data": data}
        (total, (batch_stats, reported)), (grads, slopes) = gradient(params, values, before, data)
        if sam.rho:
            _, (grads, slopes) = gradient(ascended(params, grads, sam), values, before, data)
        params, opt_state = _updated(tx, grads, Learned(params, state.opt_state), params, extra)
        for name, one in optimisers.items():
            moved = reported.pop(name, values[name])
            parts[name] = _updated(one, slopes[name], parts[name], moved, extra)
        variables = Variables(project(params, data), batch_stats)
        carry = before.carry | parts if parts else before.carry
        after = TrainState(state.step + 1, variables, opt_state, state.key, carry)
        state, metrics = advance(before, after, reported, data)
        return state, {"loss": total, **metrics}

    return step


def _with_values(carry: Any, values: dict[str, Any]) -> Any:
    """Return a train state's carry with new `values` of the entries trained by gradient."""
    if not values:
        return carry
    return carry | {name: carry[name]._replace(value=value) for name, value in values.items()}


def _updated(
    tx: optax.GradientTransformationExtraArgs,
    grads: Any,
    part: Learned,
    moved: Any,
    extra: dict[str, Any],
) -> Learned:
    """Return a value and optimiser state (`Learned`) after one update by `tx` from a gradient.

    The update is applied to `moved`, which is the part's value with updated running statistics.
    """
    updates, opt_state = tx.update(grads, part.opt_state, part.value, **extra)
    return Learned(optax.apply_updates(moved, updates), opt_state)


def accept_if(accepted: jax.Array, before: TrainState, after: TrainState) -> TrainState:
    """Return the train state `after` an update, with the update undone unless it is `accepted`.

    `accepted` is bool []. Undone means the variables and the optimiser's state of `before`. Step
    and carry are those of `after` in both cases, so the caller decides about the carry of a
    rejected update. For use in an `advance`.
    """
    kept = before.variables, before.opt_state
    made = after.variables, after.opt_state
    variables, opt_state = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), made, kept)
    return dataclasses.replace(after, variables=variables, opt_state=opt_state)


def chain_steps(*steps: Step) -> Step:
    """Build one train step that runs several train steps in turn, each with its own optimiser.

    `state.opt_state` is a tuple with the state of each optimiser. All steps share the carry and see
    the same (key, step), so their batches must come from different random streams. The step counter
    rises by one. Where metrics have the same name, the first step's is logged.
    """

    def step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        metrics: Metrics = {}
        opt_states = []
        now = state
        given = cast(tuple[optax.OptState, ...], state.opt_state)
        for one, opt_state in zip(steps, given, strict=True):
            now, reported = one(
                dataclasses.replace(now, step=state.step, opt_state=opt_state), data
            )
            opt_states.append(now.opt_state)
            metrics = reported | metrics
        return dataclasses.replace(now, opt_state=tuple(opt_states)), metrics

    return step


def joint_loss(loss: Loss) -> Loss:
    """Build a loss that adds to `loss` the penalty of a trigger that is trained with the model.

    The batches must have a `Joint` as `joint`. The loss reports the `penalty`, and as `trigger` the
    trigger with updated running statistics.
    """

    def jointly(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        value, (batch_stats, reported) = loss(params, batch_stats, batch, key, data)
        reported = reported | {"penalty": batch.joint.penalty, "trigger": batch.joint.trigger}
        return value + batch.joint.penalty, (batch_stats, reported)

    return jointly


def view_trigger(data: TrainData, carry: dict[str, Learned]) -> TrainData:
    """Return the data of a train step with the trigger replaced by the trained one in the carry.

    It is a `view` of `make_train_step`.
    """
    return data._replace(trigger=carry["trigger"].value)


def make_batches(*, rows: Rows, augment: Callable, attack: Attack | None = None) -> Batches:
    """Build a function that draws a train step's batch, poisons it by an attack, then augments it.

    The augmentation moves the trigger with the image. Where `data.batch` is given, that batch is
    used instead of a drawn one.
    """

    def batches(key: jax.Array, step: jax.Array, data: TrainData) -> Batch:
        batch = data.batch
        if batch is None:
            # Every device holds all data: unless the rows are split, each computes the whole batch.
            drawn = shard_batch(rows(key, step))
            covers = None if data.covers is None else data.covers[drawn]
            batch = Batch(*(array[drawn] for array in data.resident()), rows=drawn, covers=covers)
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
    """Build `rows(key, step)`, which returns the row numbers [batch_size] of a train step's images.

    Every epoch is a new shuffle of all `size` rows.
    """

    def rows(key: jax.Array, step: jax.Array) -> jax.Array:
        return batch_rows(
            stream(key, "rows"),
            step,
            size=size,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
        )

    return rows


def classification_loss(model: Model, *, train: bool = True) -> Loss:
    """Build the loss function of plain training: a batch's mean cross-entropy; reports `accuracy`.

    With `train` the model runs in train mode. Without it, the model normalises by its running
    statistics and does not update them.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=train)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        hits = accuracy(outputs.logits, batch.labels)
        return value, (outputs.batch_stats if train else batch_stats, {"accuracy": hits})

    return loss
