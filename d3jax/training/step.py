"""The one train step, and the parts that training and every repair share: losses, sources of batches, what moves besides the model.

`make_train_step` is the only place of the package that takes a gradient and applies an optimiser's update to it. What else a
method moves lives in `TrainState.carry`, and small functions say what a step does with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

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

Reported = dict[str, Any]
"""What a loss reports: float32 scalars to log, and arrays that `advance` takes out again."""

Loss = Callable[[Params, Params, Any, jax.Array, Any], tuple[jax.Array, tuple[Params, Reported]]]
"""`loss(params, batch_stats, batch, key, data) -> (value, (new batch_stats, reported))`.

`data` is what the step was called with, as `view` shows it: arrays that a loss needs besides the batch (D3's initial weights, a
frozen model) come in there and not in a closure, which would bake them into the compiled program.
"""

Project = Callable[[Params, Any], Params]
"""`project(params, data) -> params`, applied after every update."""

Batches = Callable[[jax.Array, jax.Array, Any], Any]
"""`batches(key, step, data) -> batch`: what a step sees, drawn and prepared inside it: a `Batch`, or whatever the loss takes."""

Rows = Callable[[jax.Array, jax.Array], jax.Array]
"""`rows(key, step) -> [B]`: which images of the set a step sees."""

Begin = Callable[[TrainState, Any], Any]
"""`begin(state, data) -> carry`: what the carry becomes before the gradient is taken."""

View = Callable[[Any, Any], Any]
"""`view(data, carry) -> data`: puts what loss and batches read of the carry where they look for it."""

Advance = Callable[[TrainState, TrainState, Reported, Any], tuple[TrainState, Metrics]]
"""`advance(before, after, reported, data) -> (state, metrics)`: what becomes of the carry, and of the update, after it was made.

`before` is the state at the gradient, `after` the updated one; `metrics` are the float32 scalars to log.
"""

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class Learned(NamedTuple):
    """A part of the carry that is trained with the model: its `value`, a pytree of floats, and the state of its optimiser."""

    value: Any
    opt_state: optax.OptState


class TrainData(NamedTuple):
    """Hold what a step needs, kept on the device.

    `split`, `poisoned [N]` bool, the attack's `trigger`, the parameters `reference_params` that a repair measures itself against
    (None without one), and numbers of its loss that members may differ in (`loss_inputs`).

    Where the images do not fit the device `split` is None and `batch` is the step's own, brought to it: uint8 images, true
    labels, and which rows are the attacker's."""

    split: Split | None
    poisoned: Array | None
    trigger: Any
    reference_params: Params = None
    loss_inputs: Any = ()
    batch: Batch | None = None

    def resident(self) -> tuple[Array, Array, Array]:
        """Return images, labels and the attacker's rows of a set that is on the device."""
        if self.split is None or self.poisoned is None:
            raise ValueError("the images are brought batch by batch, no set is on the device")
        return self.split.images, self.split.labels, self.poisoned


def keep_params(params: Params, data: Any) -> Params:
    """Return the parameters as they are: the projection of a step without one."""
    return params


def keep_carry(state: TrainState, data: Any) -> Any:
    """Return the carry as it is: nothing happens to it before the gradient."""
    return state.carry


def keep_data(data: Any, carry: Any) -> Any:
    """Return the data as they are: neither loss nor batches read the carry."""
    return data


def keep_update(
    before: TrainState, after: TrainState, reported: Reported, data: Any
) -> tuple[TrainState, Metrics]:
    """Return the updated state and what the loss reported as they are."""
    return after, reported


def init_state(
    variables: Variables,
    tx: optax.GradientTransformation,
    key: jax.Array,
    carry: Any = (),
    trained: Mapping[str, optax.GradientTransformation] | None = None,
) -> TrainState:
    """Return the state at step 0, its optimiser's state from `tx`.

    The parts of `carry` that are `trained` by a transformation of their own become `Learned`.
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
) -> Step:
    """Build `step(state, data) -> (state, metrics)`, un-jitted: the caller jits, vmaps, scans, shards or donates it.

    One step is, in this order:

    1. `carry = begin(state, data)`;
    2. `batch = batches(key, step, view(data, carry))`, the loss on it, and the loss's gradient by the parameters and by the value
       of every `trained` part of the carry;
    3. the update by `tx`, then `params = project(params, data)`; and of every trained part by its own transformation;
    4. `state, metrics = advance(before, after, reported, data)`.

    Randomness follows from (state.key, state.step) alone. Optimisers are also given `step` and `data` (optax's extra arguments),
    for rates that come in the data, or momentum that restarts.

    Args:
        tx: the optimiser of the parameters; its state is `state.opt_state`.
        loss: what descends, see `Loss`. `reported` may hold a trained part's name: the part with its running statistics moved on,
            to which the update is then applied, as the loss's `batch_stats` become the model's.
        batches: what a step sees, see `Batches`.
        project: maps the updated parameters back into their set.
        begin: the carry before the gradient (evolution: the parameters at the start of an update).
        view: shows loss and batches the carry (a trained trigger, the cost of a search).
        trained: which entries of the carry, then a dict, are trained with the model and by what; each is a `Learned`.
        advance: the carry after the update, what is logged, and whether the update stands (`accept_if`).

    Returns:
        The step. Its metrics are float32 scalars: `loss`, the value that descended unless `advance` says otherwise, and what
        `advance` lets through of what the loss reported.

    Example:
        A trigger trained with the model, by Adam, from the loss of the batches that it is stamped on::

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
    """Return the carry with other values of its trained parts."""
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
    """Return the part after the update that `tx` makes of its gradient, applied to its value with statistics `moved` on."""
    updates, opt_state = tx.update(grads, part.opt_state, part.value, **extra)
    return Learned(optax.apply_updates(moved, updates), opt_state)


def accept_if(accepted: jax.Array, before: TrainState, after: TrainState) -> TrainState:
    """Return `after`, with the variables and the optimiser's state of `before` unless `accepted` (bool []). For use in an `advance`.

    Step and carry are those of `after`: whether the carry moves on with a rejected update is the caller's decision.
    """
    kept = before.variables, before.opt_state
    made = after.variables, after.opt_state
    variables, opt_state = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), made, kept)
    return dataclasses.replace(after, variables=variables, opt_state=opt_state)


def chain_steps(*steps: Step) -> Step:
    """Build a step that makes several updates, one after the other, each with an optimiser of its own.

    `state.opt_state` is a tuple with the state of each optimiser. All see the same (key, step), so their batches must come from
    streams of their own, and share the carry; the count of steps rises by one. Of metrics of one name the first step's is logged.
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
    """Add the penalty of a trigger that is trained with the model to `loss`, for batches whose `joint` is a `Joint`.

    Reports the `penalty`, and as `trigger` the trigger with its running statistics moved on.
    """

    def jointly(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        value, (batch_stats, reported) = loss(params, batch_stats, batch, key, data)
        reported = reported | {"penalty": batch.joint.penalty, "trigger": batch.joint.trigger}
        return value + batch.joint.penalty, (batch_stats, reported)

    return jointly


def view_trigger(data: TrainData, carry: dict[str, Learned]) -> TrainData:
    """Return the data with the trigger that is trained, for `make_train_step`'s `view`."""
    return data._replace(trigger=carry["trigger"].value)


def make_batches(*, rows: Rows, augment: Callable, attack: Attack | None = None) -> Batches:
    """Build the source of a step's batches, which draws a batch from `TrainData`, poisons it, then augments it.

    The trigger moves with the image. With `data.batch` that batch is taken instead.
    """

    def batches(key: jax.Array, step: jax.Array, data: TrainData) -> Batch:
        batch = data.batch
        if batch is None:
            # Drawn from data that every device holds: unless the rows are split, each would compute the whole batch.
            drawn = shard_batch(rows(key, step))
            batch = Batch(*(array[drawn] for array in data.resident()), rows=drawn)
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
    """Build `rows(key, step) -> [batch_size]`: which images a step sees, every epoch a fresh shuffle."""

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
    """Build the mean cross-entropy of a batch, which reports the batch's `accuracy`.

    In train mode; otherwise the model normalises by its running statistics, which stay.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=train)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        hits = accuracy(outputs.logits, batch.labels)
        return value, (outputs.batch_stats if train else batch_stats, {"accuracy": hits})

    return loss
