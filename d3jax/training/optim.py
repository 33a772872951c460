"""Optimisers and learning-rate schedules from their configs."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from ..config import OptimConfig


def make_schedule(config: OptimConfig, *, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate at each of `steps` steps. `cosine_epoch` falls to 0 over the epochs and is constant within one."""
    if config.schedule == "constant":
        return optax.constant_schedule(config.lr)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.lr, steps)
    if config.schedule == "onecycle":
        return optax.cosine_onecycle_schedule(steps, config.lr)
    by_epoch = optax.cosine_decay_schedule(config.lr, -(-steps // steps_per_epoch))
    return lambda step: by_epoch(jnp.asarray(step) // steps_per_epoch)


def make_optimizer(config: OptimConfig, *, steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser of `config`. Weight decay of sgd and adam is coupled L2, added to the gradient before momentum."""
    schedule = make_schedule(config, steps=steps, steps_per_epoch=steps_per_epoch)
    if config.name == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay)
    rule = optax.adam(schedule)
    if config.name == "sgd":
        rule = optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), rule) if config.weight_decay else rule
