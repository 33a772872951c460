"""What post-training repairs share: the reserved images as training data, one optimiser loop, a `Repaired` out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from ..base import DataInfo, Defense, Model, Params, Repaired, Split, Variables
from ..config import OptimConfig, check_fields, option
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from ..training.loop import Job, Session, fit, trace_of
from ..training.minimise import minimise_job
from ..training.optim import make_optimizer
from ..training.step import Loss, Project


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
    fixed: Any = None,
    drop_last: bool = False,
) -> Job:
    """`minimise_job` on the reserved images by a `schedule`, with the augmentation that the data set allows.

    `fixed`, Python bools in the structure of the parameters, says which of them nothing may change, weight decay included.
    `drop_last` is `epoch_plan`'s.
    """
    steps_per_epoch, batch_size = epoch_plan(len(reserved.labels), schedule.batch_size, drop_last=drop_last)
    steps = schedule.steps or schedule.epochs * steps_per_epoch
    tx = make_optimizer(schedule.optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
    if fixed is not None:
        tx = optax.multi_transform({False: tx, True: optax.set_to_zero()}, fixed)
    return minimise_job(
        key, variables, reserved,
        loss=loss, project=project, anchor=anchor, hyper=hyper, tx=tx,
        steps=steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size,
        augment=make_augment(info, schedule.augment),
    )  # fmt: skip
