"""The train loop on the reserved clean images that post-training repairs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from ...config.recipes import ScheduleConfig
from ...core.checks import check_labelled
from ...core.types import DataInfo, Model, Params, Repair, Repaired, Split, Variables
from ...data.augment import make_augment
from ...data.batching import epoch_plan
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.optim import make_optimizer
from ...training.split_loop import split_loop
from ...training.step import Loss, Project, keep_params

EVAL_BATCH = 250
"""Images in a batch whose losses, predictions or activations a repair measures."""


def one_loop(
    loop: Callable[..., TrainLoop],
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None,
) -> Repair:
    """Build a `Repair` that runs the train loop that `loop` builds, and returns the trained model.

    `loop(key, model, variables, reserved) -> TrainLoop`. `check` is that of `Repair`.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        state, lines = fit(loop(key, model, variables, reserved), hooks)
        return Repaired(state.variables, trace_of(lines))

    return Repair(repair, check, loop)


def repair_loop(
    key: jax.Array,
    variables: Variables,
    reserved: Split,
    *,
    loss: Loss,
    schedule: ScheduleConfig,
    info: DataInfo,
    project: Project = keep_params,
    reference_params: Params | None = None,
    loss_inputs: Any = (),
    fixed: Any = None,
    drop_last: bool = False,
    **moving: Any,
) -> TrainLoop:
    """Build a repair's `TrainLoop`, which minimises `loss` on the reserved images by a `schedule`.

    The loop is a `split_loop` with the augmentation that the schedule and the data set allow.
    `fixed` is a pytree of Python bools with the structure of the parameters. Parameters marked True
    stay unchanged, also under weight decay. `drop_last` is passed to `epoch_plan`, and `moving`
    (`carry`, `view`, `advance`, `sam`) to `split_loop`.
    """
    check_labelled("reserved", reserved)
    steps_per_epoch, batch_size = epoch_plan(
        len(reserved.labels), schedule.batch_size, drop_last=drop_last
    )
    steps = schedule.steps or schedule.epochs * steps_per_epoch
    tx = make_optimizer(schedule.optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
    if fixed is not None:
        tx = optax.multi_transform({False: tx, True: optax.set_to_zero()}, fixed)
    return split_loop(
        key, variables, reserved,
        loss=loss, project=project, reference_params=reference_params, loss_inputs=loss_inputs,
        tx=tx, steps=steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size,
        augment=make_augment(info, schedule.augment), **moving,
    )  # fmt: skip
