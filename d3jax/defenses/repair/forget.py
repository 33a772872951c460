"""Unlearning of clean images by gradient ascent, the first step of RNP and ULRL."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ...config.recipes import ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.types import DataInfo, Model, Split, TrainState, Variables
from ...data.batching import epoch_plan
from ...training.loop import Hooks, fit
from ...training.step import Advance, Loss
from .common import repair_loop


def forget(
    key: jax.Array,
    model: Model,
    variables: Variables,
    images: Split,
    schedule: ScheduleConfig,
    least: float,
    info: DataInfo,
    hooks: Hooks,
) -> tuple[Variables, float]:
    """Raise a model's loss on clean images until an epoch's accuracy is at most `least`.

    Returns the model and the accuracy of its last epoch. It ends with the schedule at the latest.
    """
    per_epoch, _ = epoch_plan(len(images.labels), schedule.batch_size, drop_last=False)
    loop = repair_loop(
        key, variables, images, loss=ascent_loss(model), schedule=schedule, info=info,
        carry={"sum": jnp.float32(0), "accuracy": jnp.float32(1)},
        advance=watch_accuracy(per_epoch),
    )  # fmt: skip
    loop = loop._replace(finished=lambda state: state.carry["accuracy"] <= least)
    by_epoch = hooks.within("unlearn")._replace(log_every=per_epoch)  # it may end after each
    state, _ = fit(loop, by_epoch)
    return state.variables, float(state.carry["accuracy"])


def ascent_loss(model: Model) -> Loss:
    """Build the loss of gradient ascent, −CE in train mode; reports `accuracy`."""

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        value = -cross_entropy(outputs.logits, batch.labels).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def watch_accuracy(period: int) -> Advance:
    """Build an `advance` whose carry has the accuracy of the last whole `period` of steps."""

    def advance(before: TrainState, after: TrainState, reported: Any, data: Any):
        total = after.carry["sum"] + reported["accuracy"]
        ends = after.step % period == 0
        carry = {
            "sum": jnp.where(ends, 0.0, total),
            "accuracy": jnp.where(ends, total / period, after.carry["accuracy"]),
        }
        return dataclasses.replace(after, carry=carry), reported

    return advance
