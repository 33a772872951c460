"""FT, vanilla fine-tuning on the reserved images: the baseline of the repairs."""

from __future__ import annotations

import dataclasses

import jax

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.types import DataInfo, Model, Repair, Split, Variables
from ...training.loop import TrainLoop
from ...training.step import classification_loss
from .common import one_loop, repair_loop


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Settings of vanilla fine-tuning, which trains all parameters on the reserved clean images.

    The defaults are the recipe of the published FT columns: 100 epochs of batches of 256 with a
    cosine schedule. SGD has learning rate 0.01, momentum 0.9 and weight decay 5e-4.
    """

    schedule: ScheduleConfig = option(
        ScheduleConfig(optimizer=OptimConfig()), "length, batch size and optimiser"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Build fine-tuning, a repair, by these settings for the data set that `info` describes."""
        return make_finetune(self, info)


def make_finetune(config: FinetuneConfig, info: DataInfo) -> Repair:
    """Return the repair that fine-tunes all parameters with cross-entropy on the reserved images.

    BatchNorm runs in train mode.
    """

    def loop(key: jax.Array, model: Model, variables: Variables, reserved: Split) -> TrainLoop:
        return repair_loop(
            key,
            variables,
            reserved,
            loss=classification_loss(model),
            schedule=config.schedule,
            info=info,
        )

    return one_loop(loop)
