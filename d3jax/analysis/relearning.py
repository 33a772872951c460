"""Relearning: how fast a repaired model learns its backdoor again.

A low ASR is not removal. A model that is fine-tuned on a few images, among them a handful of
triggered ones, gets a backdoor back quickly if it has kept it in its weights. Source of the recipe:
the repository of FST (Min et al., NeurIPS 2023), and Min et al. 2024 (arXiv 2410.09838).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ..config.fields import check_fields, option
from ..config.recipes import OptimConfig
from ..core.random import stream
from ..core.types import Attack, DataInfo, Model, Split, Variables
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from ..training.loop import fit
from ..training.optim import make_optimizer
from ..training.split_loop import split_loop
from ..training.step import classification_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelearnConfig:
    """Settings of relearning, which fine-tunes a model on clean and a few triggered images.

    The defaults are 5 epochs of SGD on 2 % of the training images and 5 triggered ones.
    """

    clean: float = option(0.02, "share of the training images that are learned", above=0, high=1)
    poisoned: int = option(5, "triggered images with the attacker's label that are learned", low=0)
    epochs: int = option(5, "passes over these images", low=1)
    batch_size: int = option(128, "images per step", low=1)
    optimizer: OptimConfig = option(
        OptimConfig(weight_decay=0.0, schedule="constant"), "optimiser and schedule"
    )

    __post_init__ = check_fields


class Relearned(NamedTuple):
    """A model after relearning: its `variables`, and the numbers of images that it learned."""

    variables: Variables
    clean: int
    poisoned: int


def relearn(
    key: jax.Array,
    model: Model,
    variables: Variables,
    train: Split,
    attack: Attack,
    stamp: Callable[[Split], Split],
    config: RelearnConfig,
    info: DataInfo,
) -> Relearned:
    """Fine-tune a model on some of the clean images `train` and a few triggered ones.

    `stamp(split) -> split` puts the trigger on images and gives them the labels that the attacker
    wants, as `metrics.attack_success.triggered_split` does. The triggered images are others than
    the clean ones. They are of classes for which the attacker wants another label.
    """
    order = np.asarray(jax.random.permutation(stream(key, "images"), len(train.labels)))
    count = max(1, round(config.clean * len(order)))
    images, labels = (np.asarray(part) for part in train)
    clean, rest = order[:count], order[count:]
    wanted = np.asarray(attack.relabel(labels[rest]))
    own = rest[wanted != labels[rest]][: config.poisoned]
    parts = [Split(images[clean], labels[clean])]
    if len(own):
        parts.append(stamp(Split(images[own], labels[own])))
    split = Split(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    per_epoch, size = epoch_plan(len(split.labels), config.batch_size, drop_last=False)
    steps = config.epochs * per_epoch
    loop = split_loop(
        stream(key, "steps"), variables, split,
        loss=classification_loss(model),
        tx=make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch),
        steps=steps, steps_per_epoch=per_epoch, batch_size=size, augment=make_augment(info, "auto"),
    )  # fmt: skip
    return Relearned(fit(loop)[0].variables, count, len(own))
