"""FT: vanilla fine-tuning on the reserved images, the baseline of every repair."""

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
    """Default: the recipe of the published FT columns: SGD 0.01/0.9/5e-4, cosine, 100 epochs, batch 256."""

    schedule: ScheduleConfig = option(
        ScheduleConfig(optimizer=OptimConfig()), "length, batch, optimiser"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Return the repair for a data set."""
        return make_finetune(self, info)


def make_finetune(config: FinetuneConfig, info: DataInfo) -> Repair:
    """Cross-entropy on the reserved images, all parameters, BatchNorm in train mode."""

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
