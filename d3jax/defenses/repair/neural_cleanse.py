"""Neural Cleanse's repair, which unlearns the inverted trigger (Wang et al., IEEE S&P 2019).

The repair of §VI-C fine-tunes on images that carry the inverted trigger and their true labels.
"""

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
    """Settings of Neural Cleanse's repair, which fine-tunes on images with the inverted trigger.

    The defaults are the paper's: one epoch, with the inverted trigger on a fifth of the reserved
    images. BackdoorBench trains for 100 epochs.
    """

    target: Target = target_option()
    detector: str = detector_option()
    rate: float = option(
        0.2, "share of the reserved images that carry the trigger", above=0, high=1
    )
    inversion: InversionConfig = option(InversionConfig, "inversion that finds the trigger")
    detection: InversionConfig = option(
        InversionConfig, "inversion that finds the target class, where target is detect"
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(epochs=1, optimizer=OptimConfig()),
        "length, batch size and optimiser (default: SGD, lr 0.01, momentum 0.9, weight decay 5e-4)",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Repair:
        """Build Neural Cleanse's repair by these settings for the data set `info` describes."""
        return make_nc(self, info)


def unlearning_loss(model: Model) -> Loss:
    """Build Neural Cleanse's loss: mean cross-entropy, with the inverted trigger on some images.

    The rows marked in `data.loss_inputs["stamped"]` [N] bool carry `data.loss_inputs["trigger"]`.
    The model runs in train mode.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: TrainData):
        chosen = data.loss_inputs["stamped"][batch.rows][:, None, None, None]
        images = jnp.where(chosen, stamp(data.loss_inputs["trigger"], batch.images), batch.images)
        outputs = model.apply(Variables(params, batch_stats), images, train=True)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def make_nc(config: NCConfig, info: DataInfo) -> Repair:
    """Return Neural Cleanse's repair, which fine-tunes on images with the inverted trigger.

    The share `rate` of the reserved images, drawn once, carries the trigger and keeps its labels.
    The trigger is stamped after crop and flip, so it stays where the inversion found it. If the
    detection flags no class, the repair returns the model unchanged.

    Deviation: if it flags several classes, the repair unlearns the trigger of the most suspicious
    one alone. The paper unlearns that of each flagged label.
    """

    def loop(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, trigger: Trigger
    ) -> TrainLoop:
        size = len(reserved.labels)
        stamped = jax.random.permutation(stream(key, "stamped"), size) < round(config.rate * size)
        return repair_loop(
            stream(key, "steps"), variables, reserved,
            loss=unlearning_loss(model), loss_inputs={"trigger": trigger, "stamped": stamped},
            schedule=config.schedule, info=info,
        )  # fmt: skip

    return searching(
        Search(config.target, config.inversion, config.detection, config.detector), loop, info
    )
