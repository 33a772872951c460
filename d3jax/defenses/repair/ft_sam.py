"""FT-SAM, fine-tuning with sharpness-aware minimisation (Zhu et al., ICCV 2023, arXiv 2304.11823).

Neurons of a backdoor have large weights, which fine-tuning hardly changes. Adaptive SAM takes the
gradient at w + e, where e grows with the size of each weight, and so changes these most. The
settings are those of BackdoorBench's program. The paper's own were not available.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, SamConfig, ScheduleConfig
from ...core.losses import accuracy
from ...core.types import DataInfo, Model, Repair, Split, Variables
from ...training.loop import TrainLoop
from ...training.step import Loss
from .common import one_loop, repair_loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class FTSAMConfig:
    """Settings of FT-SAM, which fine-tunes all parameters by sharpness-aware minimisation.

    The defaults are BackdoorBench's: adaptive SAM with ρ 2, label smoothing 0.1, and 100 epochs of
    batches of 256. Its reserved images are drawn by class (`reserved.stratified: true`). For GTSRB
    and Tiny ImageNet it takes ρ 8 and no smoothing.

    Its program moves the learning rate at every step, although the schedule was meant for epochs
    (`cosine_100`). The rate therefore rises and falls five times in 1,000 steps, and the run ends
    at the peak. The schedule `cosine_epoch` is the one that was meant.
    """

    sam: SamConfig = option(SamConfig(rho=2.0), "length and kind of the step w + e")
    smoothing: float = option(
        0.1, "label smoothing s: the label has 1 − s, each other class s / (K − 1)", low=0, high=1
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(optimizer=OptimConfig(schedule="cosine_100")),
        "length, batch size and optimiser",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair FT-SAM with these settings for the data set that `info` describes."""
        return make_ft_sam(self, info)


def smoothed_kl(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Return the divergence KL(t ‖ softmax) [B] of predictions from smoothed labels t, in nats.

    `logits` are [B, K]. t is 1 − s at the label and s / (K − 1) elsewhere.
    """
    classes = logits.shape[-1]
    hot = jax.nn.one_hot(labels, classes)
    target = (1 - smoothing) * hot + smoothing / (classes - 1) * (1 - hot)
    known = jnp.sum(jax.scipy.special.xlogy(target, target), -1)
    return known - jnp.sum(target * jax.nn.log_softmax(logits), -1)


def ft_sam_loss(model: Model, smoothing: float) -> Loss:
    """Build FT-SAM's loss, the mean `smoothed_kl` of a batch in train mode; reports `accuracy`."""

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        value = smoothed_kl(outputs.logits, batch.labels, smoothing).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def make_ft_sam(config: FTSAMConfig, info: DataInfo) -> Repair:
    """Return FT-SAM, the repair that fine-tunes with gradients taken at perturbed weights.

    The trace holds `loss` and `accuracy` of the batches, at the unperturbed weights. Running
    statistics of BatchNorm move in the first pass only.

    Deviation: an epoch is cut into equal batches, where BackdoorBench's ends on a short one.
    """

    def loop(key: jax.Array, model: Model, variables: Variables, reserved: Split) -> TrainLoop:
        return repair_loop(
            key, variables, reserved,
            loss=ft_sam_loss(model, config.smoothing), sam=config.sam,
            schedule=config.schedule, info=info,
        )  # fmt: skip

    return one_loop(loop)
