"""NC's repair: fine-tuning on images that carry the inverted trigger and their true labels (Wang et al., IEEE S&P 2019, §VI-C)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import Batch, DataInfo, Model, Params, Repair, Split, Variables
from ...inversion import InversionConfig, Trigger, stamp
from ...training.loop import TrainLoop
from ...training.step import Loss, TrainData
from .common import repair_loop
from .target import Search, Target, detector_option, searching, target_option


@dataclasses.dataclass(frozen=True)
class NCConfig:
    """Default: the reversed trigger on a fifth of the reserved images, one epoch, as the paper; BackdoorBench takes 100 epochs."""

    target: Target = target_option()
    detector: str = detector_option()
    rate: float = option(
        0.2, "share of the reserved images that carry the trigger", above=0, high=1
    )
    inversion: InversionConfig = option(InversionConfig, "how the trigger is found")
    detection: InversionConfig = option(
        InversionConfig, "how the target is found, where it is to be detected"
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(epochs=1, optimizer=OptimConfig()),
        "length, batch, optimiser (its own: SGD 0.01/0.9/5e-4)",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Return the repair for a data set."""
        return make_nc(self, info)


def unlearning_loss(model: Model) -> Loss:
    """Mean cross-entropy in train mode, with `data.loss_inputs["trigger"]` on the rows of `data.loss_inputs["stamped"]` [N]."""

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: TrainData):
        chosen = data.loss_inputs["stamped"][batch.rows][:, None, None, None]
        images = jnp.where(chosen, stamp(data.loss_inputs["trigger"], batch.images), batch.images)
        outputs = model.apply(Variables(params, batch_stats), images, train=True)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def make_nc(config: NCConfig, info: DataInfo) -> Repair:
    """NC as a repair: `rate` of the reserved images, drawn once, carry the trigger and keep their labels.

    The trigger goes on after crop and flip: it is where it was found. Where detection flags no label the model stays as it is.
    """

    def loop(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, trigger: Trigger
    ) -> TrainLoop:
        size = len(reserved.labels)
        stamped = jax.random.permutation(stream(key, "stamped"), size) < round(config.rate * size)
        return repair_loop(
            stream(key, "steps"), variables, reserved,
            loss=unlearning_loss(model), loss_inputs={"trigger": trigger, "stamped": stamped}, schedule=config.schedule, info=info,
        )  # fmt: skip

    return searching(
        Search(config.target, config.inversion, config.detection, config.detector), loop, info
    )
