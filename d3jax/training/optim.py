"""Builders of optax optimisers and learning-rate schedules from their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..config.recipes import OptimConfig


def make_optimizer(
    config: OptimConfig, *, steps: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Build the optax optimiser that an `OptimConfig` describes, scheduled over `steps` steps.

    The weight decay of sgd and adam is coupled L2: it is added to the gradient before momentum.
    Learning rate, momentum and weight decay are arrays of the optimiser's state, not constants of
    the program. Loops that differ only in them can so run as members of one program.
    """
    schedule = make_schedule(config.schedule, steps=steps, steps_per_epoch=steps_per_epoch)

    def build(lr, weight_decay, momentum):
        def rate(step):
            return lr * schedule(step)

        if config.name == "adamw":
            return optax.adamw(rate, weight_decay=weight_decay)
        rule = optax.adam(rate)
        if config.name == "amsgrad":
            rule = optax.chain(scale_by_amsgrad(), optax.scale_by_learning_rate(rate))
        if config.name == "sgd":
            rule = optax.sgd(
                rate, momentum=momentum if config.momentum else None, nesterov=config.nesterov
            )
        return (
            optax.chain(optax.add_decayed_weights(weight_decay), rule)
            if config.weight_decay
            else rule
        )

    return optax.inject_hyperparams(build)(config.lr, config.weight_decay, config.momentum)


class AmsgradState(NamedTuple):
    """The state of `scale_by_amsgrad`: step count, first and second moments, and their maximum."""

    count: jax.Array
    mean: Any
    square: Any
    largest: Any


def scale_by_amsgrad(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Build PyTorch's Adam with `amsgrad=True`, without learning rate and weight decay.

    The maximum is taken of the second moment before its bias correction. `optax.amsgrad` takes it
    afterwards, which gives other steps.
    """

    def init(params: Any) -> AmsgradState:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(3)]
        return AmsgradState(jnp.zeros((), jnp.int32), *zeros)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AmsgradState]:
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.square, updates)
        largest = jax.tree.map(jnp.maximum, state.largest, square)
        first, second = 1 - b1**count, 1 - b2**count

        def move(m: jax.Array, v: jax.Array) -> jax.Array:
            return (m / first) / (jnp.sqrt(v) / jnp.sqrt(second) + eps)

        return jax.tree.map(move, mean, largest), AmsgradState(count, mean, square, largest)

    return optax.GradientTransformation(init, update)


def make_schedule(name: str, *, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Build the schedule `name`, such as `cosine`: a function from step to learning-rate factor.

    - `constant` stays 1.
    - `cosine` falls to 0 over `steps` steps.
    - `cosine_100` is ½(1 + cos(πt/100)) at step t. It falls to 0 over 100 steps, rises over the
      next 100, and so on.
    - `cosine_40` falls to 0.4 over `steps` steps.
    - `onecycle` is optax's `cosine_onecycle_schedule` over `steps` steps.
    - `cosine_epoch` falls to 0 over the epochs and is constant within an epoch.
    - `cosine_epoch_100` is ½(1 + cos(πe/100)) in epoch e: BackdoorBench's, whatever the length.
    - `multistep` is 1 at first. It is 1/10 after 1/20 of the epochs (at least one epoch), and 1/100
      after half of them (at least two).
    - `drop` is 1 at first, and 1/10 after two thirds of the epochs (at least one).
    - `half_drop` is 1 at first, and 1/10 after half of the epochs (at least one).
    - `early_drop` is 1 at first, and 1/10 after a tenth of the epochs (at least one).
    - `fifths` is 1 at first, and falls to a tenth of itself after each fifth of the epochs.
    """
    epochs = -(-steps // steps_per_epoch)
    if name == "constant":
        return optax.constant_schedule(1.0)
    if name == "cosine":
        return optax.cosine_decay_schedule(1.0, steps)
    if name == "cosine_40":
        return optax.cosine_decay_schedule(1.0, steps, alpha=0.4)
    if name == "cosine_100":
        return lambda step: 0.5 * (1 + jnp.cos(jnp.pi * step / 100))
    if name == "onecycle":
        return optax.cosine_onecycle_schedule(steps, 1.0)
    by_epoch = optax.cosine_decay_schedule(1.0, 100 if name == "cosine_epoch_100" else epochs)
    drops = {"drop": 2 / 3, "half_drop": 1 / 2, "early_drop": 1 / 10}
    if name in drops:
        at = max(1, round(drops[name] * epochs))
        by_epoch = optax.piecewise_constant_schedule(1.0, {at: 0.1})
    if name == "fifths":
        ends = (max(i, i * epochs // 5) for i in range(1, 5))
        by_epoch = optax.piecewise_constant_schedule(1.0, dict.fromkeys(ends, 0.1))
    if name == "multistep":
        by_epoch = optax.piecewise_constant_schedule(
            1.0, {max(1, epochs // 20): 0.1, max(2, epochs // 2): 0.1}
        )
    return lambda step: by_epoch(jnp.asarray(step) // steps_per_epoch)


def two_drops(rate: float, steps: int) -> optax.Schedule:
    """Return a learning rate that falls to a tenth after 2/5 and again after 4/5 of `steps` steps.

    Input-aware's mask net and Poison Ink's networks are trained so.
    """
    return optax.piecewise_constant_schedule(rate, {int(0.4 * steps): 0.1, int(0.8 * steps): 0.1})


def scale_by_step_rate(
    rate: Callable[[jax.Array, Any], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Build the optax transformation that multiplies updates by minus the rate `rate(step, data)`.

    The learning rate comes from the data of a step, so that loops with different rates can run as
    members of one program. `make_train_step` passes `step` and `data`.
    """

    def update(updates, state, params=None, **extra):
        now = rate(extra["step"], extra["data"])
        return jax.tree.map(lambda move: -now * move, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def restart_every(
    tx: optax.GradientTransformation, period: int
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optax optimiser so that its state is reset at every `period`-th train step.

    Step 0 and the multiples of `period` reset it, before the update. `make_train_step` passes
    `step`.
    """
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra):
        starts = extra["step"] % period == 0
        fresh = tx.init(updates if params is None else params)
        state = jax.tree.map(lambda new, old: jnp.where(starts, new, old), fresh, state)
        return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)
