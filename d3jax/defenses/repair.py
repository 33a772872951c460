"""What post-training repairs share: the reserved images as training data, one optimiser loop, a `Repaired` out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..base import DataInfo, Defense, Model, Params, Repaired, Split, Variables
from ..config import OptimConfig, check_fields, option
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from ..training.loop import Job, Session, fit, trace_of
from ..training.optim import make_optimizer
from ..training.step import Loss, Project, TrainData, init_state, make_batches, make_rows, make_train_step


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How long and with what a repair runs on the reserved images."""

    epochs: int = option(100, "passes over the reserved images", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(256, "images a step; an epoch is cut into equal batches of at most this", low=1)
    augment: Literal["auto", "none"] = option("auto", "auto: the crop and flip that the data set allows")
    optimizer: OptimConfig | None = option(None, "optimiser and schedule (null: the method's own)")

    def __post_init__(self) -> None:
        check_fields(self)

    def with_default(self, optimizer: OptimConfig) -> ScheduleConfig:
        """This schedule with `optimizer` where none is given."""
        return self if self.optimizer else dataclasses.replace(self, optimizer=optimizer)


def one_loop(job: Callable[..., Job], check: Callable[[Params, int], None] = lambda params, size: None) -> Defense:
    """The defence whose repair is the loop `job(key, model, variables, reserved)`, its last state the result."""

    def repair(key: jax.Array, model: Model, variables: Variables, reserved: Split, session: Session = Session()) -> Repaired:
        state, lines = fit(job(key, model, variables, reserved), session)
        return Repaired(state.variables, trace_of(lines))

    return Defense(repair, check, job)


def repair_job(
    key: jax.Array,
    variables: Variables,
    reserved: Split,
    *,
    loss: Loss,
    schedule: ScheduleConfig,
    info: DataInfo,
    project: Project = lambda params, data: params,
    anchor: Params | None = None,
    hyper: Any = (),
) -> Job:
    """The loop that minimises `loss` on the reserved images from `variables`, projecting the parameters after every step.

    `loss` and `project` see `anchor` and `hyper` in their `data`.
    """
    size = len(reserved.labels)
    steps_per_epoch, batch_size = epoch_plan(size, schedule.batch_size, drop_last=False)
    steps = schedule.steps or schedule.epochs * steps_per_epoch
    tx = make_optimizer(schedule.optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
    augment = make_augment(info, schedule.augment)
    rows = make_rows(size=size, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    batches = make_batches(rows=rows, augment=augment)
    step = make_train_step(tx, loss=loss, batches=batches, project=project)
    data = TrainData(Split(*map(jnp.asarray, reserved)), jnp.zeros(size, bool), {}, anchor, hyper)
    return Job(step, init_state(variables, tx, key), data, steps)
