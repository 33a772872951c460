"""SFT, super-fine-tuning (Sha et al., arXiv 2212.09067).

Fine-tuning with a learning rate that rises and falls in triangles. Large peaks make the model
forget, and small ones at the end recover the accuracy.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ...config.fields import check_fields, option
from ...core.types import DataInfo, Model, Repair, Split, Variables
from ...data.augment import make_augment
from ...data.batching import epoch_plan
from ...training.loop import TrainLoop
from ...training.split_loop import split_loop
from ...training.step import classification_loss
from .common import one_loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Settings of super-fine-tuning, with a rate that rises and falls in triangles.

    The defaults are those of the backdoor-toolbox's program: SGD without momentum, batches of 128,
    100 epochs. In the first 40 the rate goes from 0.03 to 2.5 and back every 20 steps, and then
    from 0.03 to 0.05 and back.
    """

    epochs: int = option(100, "passes over the reserved images", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(128, "images per step", low=1)
    augment: Literal["auto", "none"] = option(
        "auto", "data augmentation; auto: the crop and flip that the data set allows"
    )
    base: float = option(0.03, "lowest learning rate", above=0)
    peak: float = option(2.5, "highest learning rate of the first phase", above=0)
    last_peak: float = option(0.05, "highest learning rate of the second phase", above=0)
    period: int = option(20, "steps of a triangle", low=2)
    share: float = option(0.4, "share of the steps in the first phase", low=0, high=1)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build super-fine-tuning, a repair, for the data set that `info` describes."""
        return make_sft(self, info)


def triangles(config: SFTConfig, steps: int) -> optax.Schedule:
    """Build the learning rate at each of `steps` steps."""

    def rate(step: Any) -> Any:
        peak = jnp.where(step < config.share * steps, config.peak, config.last_peak)
        place = (step % config.period) / config.period
        height = 1 - jnp.abs(2 * place - 1)
        return config.base + (peak - config.base) * height

    return rate


def make_sft(config: SFTConfig, info: DataInfo) -> Repair:
    """Return super-fine-tuning, the repair that fine-tunes with a triangular learning rate.

    The trace holds `loss` and `accuracy` of the batches.
    """

    def loop(key: jax.Array, model: Model, variables: Variables, reserved: Split) -> TrainLoop:
        per_epoch, size = epoch_plan(len(reserved.labels), config.batch_size, drop_last=False)
        steps = config.steps or config.epochs * per_epoch
        return split_loop(
            key, variables, reserved,
            loss=classification_loss(model), tx=optax.sgd(triangles(config, steps)),
            steps=steps, steps_per_epoch=per_epoch, batch_size=size,
            augment=make_augment(info, config.augment),
        )  # fmt: skip

    return one_loop(loop)
