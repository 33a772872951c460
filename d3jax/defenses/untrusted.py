"""What training-time defences share: training on images that may be poisoned, and what they find out about them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..analysis.isolation import Score, lowest, scores_of
from ..base import DataInfo, Model, Split, Variables, stream
from ..config import TrainConfig, check_fields, option
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from ..training.ascent import Kind, ascent_job
from ..training.loop import Job
from ..training.minimise import minimise_job
from ..training.optim import make_optimizer
from ..training.step import Loss

SCORES = ("entropy", "cross_entropy", "symmetric", "mixture")


def training_job(key: jax.Array, variables: Variables, data: Split, config: TrainConfig, info: DataInfo, loss: Loss) -> Job:
    """`minimise_job` on `data` by a training recipe."""
    per_epoch, batch_size = epoch_plan(len(data.labels), config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * per_epoch
    return minimise_job(
        key, variables, data,
        loss=loss, tx=make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch),
        steps=steps, steps_per_epoch=per_epoch, batch_size=batch_size, augment=make_augment(info, config.augment),
    )  # fmt: skip


def first_job(key: jax.Array, model: Model, data: Split, config: TrainConfig, info: DataInfo, loss: Loss) -> Job:
    """The first stage: from scratch on all images."""
    return training_job(stream(key, "train"), model.init(stream(key, "init")), data, config, info, loss)


def epoch_steps(count: int, batch_size: int) -> int:
    """Steps in an epoch of `count` images, for what is watched once an epoch."""
    return max(1, count // batch_size)


@dataclasses.dataclass(frozen=True)
class UnlearnConfig:
    """Unlearning of the suspects. Default: ABL's, ascent at 5e-4 for 16 steps, but stopped at chance."""

    kind: Kind = option(
        "ascent",
        "ascent on their loss; alternate: with descent on all others, some of them poisoned; uniform: towards an even prediction",
    )
    lr: float = option(5e-4, "learning rate of SGD with momentum", above=0)
    momentum: float = option(0.9, "SGD momentum", low=0, high=1)
    steps: int = option(16, "steps", low=1)
    batch_size: int = option(128, "images a step", low=1)
    batch_norm: Literal["train", "frozen"] = option("train", "statistics: of the suspects, which are learned, or the stored ones")
    bounded: bool = option(True, "nothing moves any more once a batch of suspects is right less often than chance")

    def __post_init__(self) -> None:
        check_fields(self)


def unlearning_job(
    key: jax.Array, model: Model, variables: Variables, data: Split, suspects: np.ndarray, trusted: np.ndarray, config: UnlearnConfig
) -> Job:  # fmt: skip
    """`ascent_job` by a config; `suspects` and `trusted` are rows of `data`."""
    return ascent_job(
        key, model, variables, data, suspects, trusted,
        tx=optax.sgd(config.lr, momentum=config.momentum), steps=config.steps, batch_size=config.batch_size, kind=config.kind,
        batch_norm=config.batch_norm, bounded=config.bounded,
    )  # fmt: skip


def suspects_of(
    model: Model, variables: Variables, data: Split, score: Score, ratio: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every score [N] of every image, and the ⌊ratio·N⌋ rows (at least one) that are lowest by `score`."""
    scores = scores_of(model, variables, data)
    count = max(1, int(ratio * len(data.labels)))
    return scores, lowest(scores[score], count, scores["cross_entropy"])


def found_shapes(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a training-time defence finds out about `size` images: the scores behind its first stage, which are `suspects`, the score
    that the rest was ranked by afterwards (`rescored`) and which kept their labels (`labelled`)."""
    names = dict.fromkeys((*SCORES, "rescored"), jnp.float32) | dict.fromkeys(("suspects", "labelled"), jnp.bool_)
    return {name: jax.ShapeDtypeStruct((size,), dtype) for name, dtype in names.items()}


def found_of(size: int, scores: dict[str, np.ndarray], **more: Any) -> dict[str, np.ndarray]:
    """The arrays of `found_shapes`: `scores`, and `more`, of which masks may be given as rows; 0 where nothing is said."""
    found: dict[str, np.ndarray] = {}
    for name, shape in found_shapes(size).items():
        value = more.get(name, scores.get(name, np.zeros(size)))
        if shape.dtype == jnp.bool_ and value.dtype != np.bool_ and name in more:
            mask = np.zeros(size, bool)
            mask[value] = True
            value = mask
        found[name] = np.asarray(value, shape.dtype)
    return found
