"""What training-time defences share: training on images that may be poisoned, and what they find out about them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, check_foreign, option
from ...config.recipes import OptimConfig, TrainConfig
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import DataInfo, Model, Split, Variables
from ...data.augment import make_augment
from ...data.batching import epoch_plan
from ...metrics.sample_scores import NAMES, Score, ranking, scores_of, ties_of
from ...runtime.distributed import same_arrays
from ...training.loop import TrainLoop
from ...training.optim import make_optimizer
from ...training.split_loop import split_loop
from ...training.step import Loss
from ...training.unlearn import Descent, Kind, parts_of, unlearn_loop


def training_loop(
    key: jax.Array,
    variables: Variables,
    data: Split,
    config: TrainConfig,
    info: DataInfo,
    loss: Loss,
) -> TrainLoop:
    """`split_loop` on `data` by a training recipe."""
    per_epoch, batch_size = epoch_plan(len(data.labels), config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * per_epoch
    return split_loop(
        key, variables, data,
        loss=loss, tx=make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch),
        steps=steps, steps_per_epoch=per_epoch, batch_size=batch_size, augment=make_augment(info, config.augment),
    )  # fmt: skip


def first_stage_loop(
    key: jax.Array, model: Model, data: Split, config: TrainConfig, info: DataInfo, loss: Loss
) -> TrainLoop:
    """The first stage: from scratch on all images."""
    return training_loop(
        stream(key, "train"), model.init(stream(key, "init")), data, config, info, loss
    )


def epoch_steps(count: int, batch_size: int) -> int:
    """Steps in an epoch of `count` images, for what is watched once an epoch."""
    return max(1, count // batch_size)


ASCENT = OptimConfig(lr=5e-4, nesterov=True, weight_decay=1e-4, schedule="constant")


Trusted = Literal["class", "all"]


@dataclasses.dataclass(frozen=True)
class UnlearnConfig:
    """Unlearning of the suspects. Default: ABL's, ascent at 5e-4 for 16 steps, but stopped at chance."""

    kind: Kind = option(
        "ascent", "ascent on their loss (ABL's); uniform: towards an even prediction (ours)"
    )
    descent: Descent = option(
        "none",
        "on the loss of trusted images: in turns with unlearning (with ascent D-BR's), or together with it, in one batch",
    )
    trusted: Trusted = option(
        "class",
        "which half descent trusts: class: the least suspected of every class, as many of each; all: those of all images",
    )
    share: float = option(
        0.25,
        "of the images of a batch that are suspects, where both are together in it (ours)",
        above=0,
        high=0.9,
    )
    optimizer: OptimConfig = option(
        lambda: ASCENT, "optimiser and schedule (ABL's; DLP's rate is ten times that)"
    )
    steps: int = option(16, "steps (ABL's four epochs of 500 images; DLP: 100, ours)", low=1)
    batch_size: int = option(
        128, "images a step, of suspects at most as many as there are; in turns of each kind", low=1
    )
    batch_norm: Literal["train", "frozen"] = option(
        "train", "statistics: the batch's, which are learned (ABL's), or the stored ones"
    )
    bounded: bool = option(
        True,
        "rests once a batch of suspects is right less often than chance (ours; ABL has no end)",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_foreign(self, "descent", {"share": ("together",), "trusted": ("turns", "together")})


class Judged(NamedTuple):
    """What a filter says of N images: every score [N] by its name, all rows `ranked` [N] from the most to the least suspected, and the sorted
    rows of the `suspects` and of the half that is `trusted`."""

    scores: dict[str, np.ndarray]
    ranked: np.ndarray
    suspects: np.ndarray
    trusted: np.ndarray


def judge(
    model: Model,
    variables: Variables,
    data: Split,
    score: Score,
    ratio: float,
    trusted: Trusted = "class",
) -> Judged:
    """Suspects are the ⌊ratio·N⌋ images (at least one) that are lowest by `score`; by `mixture` fewer where it says of fewer that they
    rather belong to the lower Gaussian. Several processes agree."""
    scores = same_arrays(scores_of(model, variables, data))
    count = suspected(len(data.labels), ratio)
    if score == "mixture":
        count = max(1, min(count, int(np.sum(scores["mixture"] < 0.5))))
    ranked = ranking(scores[score], ties_of(score, scores))
    return suspect(scores, ranked, np.asarray(data.labels), ranked[:count], trusted)


def suspect(
    scores: dict[str, np.ndarray], ranked: np.ndarray, labels: np.ndarray, suspects: np.ndarray, trusted: Trusted
) -> Judged:  # fmt: skip
    """What is trusted beside these `suspects`: half of all images, the least suspected by `ranked`, by `class` as many of every class, of
    a class with too few all."""
    rest = ranked[~np.isin(ranked, suspects)][::-1]
    if trusted == "class":
        rest = rest[np.argsort(_places(labels[rest]), kind="stable")]
    return Judged(scores, ranked, np.sort(suspects), np.sort(rest[: len(labels) // 2]))


def _places(labels: np.ndarray) -> np.ndarray:
    """How many of the same label stand before each."""
    places = np.zeros(len(labels), int)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        places[mine] = np.arange(len(mine))
    return places


def suspected(size: int, ratio: float) -> int:
    """How many of `size` images are suspects."""
    return max(1, int(ratio * size))


def check_ratio(ratio: float, size: int) -> None:
    """Raises `ConfigError` where `ratio` of the images is none."""
    if int(ratio * size) < 1:
        raise ConfigError(f"ratio: {ratio:g} of the {size} images is less than one")


def check_batch(part: str, batch_size: int, count: int, images: str) -> None:
    """Raises `ConfigError` where `part` of a defence has no batch of its `images`, of which there are `count`."""
    if batch_size > count:
        raise ConfigError(f"{part}.batch_size: {batch_size} is more than the {count} {images}")


def check_unlearning(config: UnlearnConfig, size: int) -> None:
    """Raises `ConfigError` where a step may want more trusted images than the half of `size`, or has none beside its suspects."""
    _, trusted = parts_of(
        config.batch_size, config.descent, config.share, suspects=1
    )  # `mixture` may say of one alone
    if trusted > size // 2:
        raise ConfigError(
            f"unlearn.batch_size: {config.batch_size} may want {trusted} trusted images a step, more than the {size // 2} there are"
        )


def unlearning_loop(
    key: jax.Array, model: Model, variables: Variables, data: Split, judged: Judged, config: UnlearnConfig
) -> TrainLoop:  # fmt: skip
    """`unlearn_loop` by a config. A schedule that goes by epochs goes by steps."""
    return unlearn_loop(
        key, model, variables, data, judged.suspects, judged.trusted,
        tx=make_optimizer(config.optimizer, steps=config.steps, steps_per_epoch=1), steps=config.steps,
        batch_size=config.batch_size, kind=config.kind, descent=config.descent, share=config.share, batch_norm=config.batch_norm,
        bounded=config.bounded,
    )  # fmt: skip


def appended(lines: list[LogRecord], more: list[LogRecord]) -> list[LogRecord]:
    """The lines of two loops, one after the other: the second's steps and seconds count on."""
    last = lines[-1] if lines else {"step": 0, "seconds": 0.0}
    return lines + [
        line | {name: line[name] + last[name] for name in ("step", "seconds")} for line in more
    ]


def found_shapes(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a training-time defence finds out about `size` images: the scores behind its first stage, which are `suspects`, the score
    that the rest was ranked by afterwards (`rescored`, ties by `rescored_entropy`) and which kept their labels (`labelled`)."""
    names = dict.fromkeys((*NAMES, "rescored", "rescored_entropy"), jnp.float32) | dict.fromkeys(
        ("suspects", "labelled"), jnp.bool_
    )
    return {name: jax.ShapeDtypeStruct((size,), dtype) for name, dtype in names.items()}


def found_of(size: int, scores: dict[str, np.ndarray], **more: Any) -> dict[str, np.ndarray]:
    """The arrays of `found_shapes`: `scores`, and `more`, of which masks are given as rows; 0 where nothing is said."""
    found: dict[str, np.ndarray] = {}
    for name, shape in found_shapes(size).items():
        value = more.get(name, scores.get(name, np.zeros(size)))
        if shape.dtype == jnp.bool_ and name in more:
            value = np.isin(np.arange(size), value)
        found[name] = np.asarray(value, shape.dtype)
    return found
