"""Optimisers and learning-rate schedules from their configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config.recipes import OptimConfig


def make_optimizer(
    config: OptimConfig, *, steps: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimiser of `config`. Weight decay of sgd and adam is coupled L2, added to the gradient before momentum.

    Learning rate, momentum and weight decay are arrays of its state and not constants of the program, so that loops that
    differ in them alone can run as members of one program.
    """
    schedule = make_schedule(config.schedule, steps=steps, steps_per_epoch=steps_per_epoch)

    def build(lr, weight_decay, momentum):
        def rate(step):
            return lr * schedule(step)

        if config.name == "adamw":
            return optax.adamw(rate, weight_decay=weight_decay)
        rule = optax.adam(rate)
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


def make_schedule(name: str, *, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The factor of the learning rate at each of `steps` steps. `cosine_epoch` falls to 0 over the epochs, constant within one;
    `multistep` is 1, from 1/20 of the epochs (but one at least) 1/10, from half of them 1/100; `drop` is 1/10 from two thirds."""
    epochs = -(-steps // steps_per_epoch)
    if name == "constant":
        return optax.constant_schedule(1.0)
    if name == "cosine":
        return optax.cosine_decay_schedule(1.0, steps)
    if name == "onecycle":
        return optax.cosine_onecycle_schedule(steps, 1.0)
    by_epoch = optax.cosine_decay_schedule(1.0, epochs)
    if name == "drop":
        by_epoch = optax.piecewise_constant_schedule(1.0, {max(1, round(2 * epochs / 3)): 0.1})
    if name == "multistep":
        by_epoch = optax.piecewise_constant_schedule(
            1.0, {max(1, epochs // 20): 0.1, max(2, epochs // 2): 0.1}
        )
    return lambda step: by_epoch(jnp.asarray(step) // steps_per_epoch)


def scale_by_step_rate(
    rate: Callable[[jax.Array, Any], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Build the transformation that multiplies updates by −`rate(step, data)`, a learning rate that comes in a step's data.

    Loops whose rates differ can so run as members of one program. `make_train_step` passes `step` and `data`.
    """

    def update(updates, state, params=None, **extra):
        now = rate(extra["step"], extra["data"])
        return jax.tree.map(lambda move: -now * move, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def restart_every(
    tx: optax.GradientTransformation, period: int
) -> optax.GradientTransformationExtraArgs:
    """Build the transformation `tx` whose state is the initial one again at every `period`-th step, the first included.

    `make_train_step` passes `step`.
    """
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra):
        starts = extra["step"] % period == 0
        fresh = tx.init(updates if params is None else params)
        state = jax.tree.map(lambda new, old: jnp.where(starts, new, old), fresh, state)
        return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)
