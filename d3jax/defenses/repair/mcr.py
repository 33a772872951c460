"""MCR, mode connectivity repair (Zhao et al., ICLR 2020).

Two models of low loss are joined by a curve of low loss. MCR fine-tunes the backdoored model θ₀ to
θ₁, and trains the middle point θ_m of a Bézier curve on clean images:

    θ(t) = (1 − t)² θ₀ + 2 t (1 − t) θ_m + t² θ₁        t ~ U(0, 1) in every step

A model a little way along the curve keeps the accuracy, and loses the backdoor.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Params, Repair, Repaired, Split, Variables
from ...training.batch_statistics import with_estimated_statistics
from ...training.loop import Hooks, fit, trace_of
from ...training.step import Loss, classification_loss
from .common import repair_loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class MCRConfig:
    """Settings of MCR, which takes a model on a curve between the backdoored and a fine-tuned one.

    The defaults are BackdoorBench's: both trainings take 100 epochs in batches of 128, and the
    model at t = 0.1 is kept. Its program never clears the gradients of the curve, so that its
    learning rate of 3e-5 acts as one that is up to 600 times larger. Here gradients are cleared,
    and the rate is 500 times theirs, 0.015.
    """

    t: float = option(0.1, "t, place on the curve", low=0, high=1)
    finetune: ScheduleConfig = option(
        ScheduleConfig(batch_size=128, optimizer=OptimConfig()),
        "length, batch size and optimiser of the fine-tuning to θ₁",
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(batch_size=128, optimizer=OptimConfig(lr=0.015)),
        "length, batch size and optimiser of the curve",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair MCR with these settings for the data set that `info` describes."""
        return make_mcr(self, info)


def on_curve(t: jax.Array | float, first: Params, middle: Params, last: Params) -> Params:
    """Return the point θ(t) of the Bézier curve with these three points."""
    return jax.tree.map(
        lambda a, b, c: (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c, first, middle, last
    )


def curve_loss(model: Model) -> Loss:
    """Build the loss of the middle point: CE at a random point of the curve, in train mode.

    `data.loss_inputs` has the parameters `first` and `last`. The loss reports `t` and `accuracy`.
    """

    def loss(params, batch_stats, batch, key, data):
        t = jax.random.uniform(key)
        point = on_curve(t, data.loss_inputs["first"], params, data.loss_inputs["last"])
        outputs = model.apply(Variables(point, batch_stats), batch.images, train=True)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        reported = {"t": t, "accuracy": accuracy(outputs.logits, batch.labels)}
        return value, (outputs.batch_stats, reported)

    return loss


def make_mcr(config: MCRConfig, info: DataInfo) -> Repair:
    """Return MCR, the repair that takes a model on a curve of low loss.

    The trace is that of the curve's training.

    Deviation: BatchNorm's statistics at t are estimated on the reserved images. BackdoorBench moves
    the running ones by one pass over them, which leaves an eighth of what they were.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        loop = repair_loop(
            stream(key, "finetune"), variables, reserved,
            loss=classification_loss(model), schedule=config.finetune, info=info,
        )  # fmt: skip
        last = fit(loop, hooks.within("finetune"))[0].variables
        middle = jax.tree.map(lambda a, b: (a + b) / 2, variables.params, last.params)
        loop = repair_loop(
            stream(key, "curve"), Variables(middle, last.batch_stats), reserved,
            loss=curve_loss(model), schedule=config.schedule, info=info,
            loss_inputs={"first": variables.params, "last": last.params},
        )  # fmt: skip
        state, records = fit(loop, hooks.within("curve"))
        point = on_curve(config.t, variables.params, state.variables.params, last.params)
        found = Variables(jax.tree.map(jnp.asarray, point), state.variables.batch_stats)
        return Repaired(with_estimated_statistics(model, found, reserved), trace_of(records))

    return Repair(repair)
