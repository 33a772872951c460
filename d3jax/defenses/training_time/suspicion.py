"""Functions that training-time defences share: training on suspect data, filtering, unlearning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
    *,
    drops: Sequence[float] = (),
    loss_inputs: Any = (),
) -> TrainLoop:
    """Build the `TrainLoop` of a training recipe on `data`, starting from the model `variables`.

    The short last batch of an epoch is dropped. `drops` are those of `with_drops`, and
    `loss_inputs` those of `split_loop`.
    """
    per_epoch, batch_size = epoch_plan(len(data.labels), config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * per_epoch
    tx = make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch)
    return split_loop(
        key, variables, data,
        loss=loss, tx=with_drops(tx, drops, steps=steps, steps_per_epoch=per_epoch),
        steps=steps, steps_per_epoch=per_epoch, batch_size=batch_size,
        augment=make_augment(info, config.augment), loss_inputs=loss_inputs, sam=config.sam,
    )  # fmt: skip


def with_drops(
    tx: optax.GradientTransformation, drops: Sequence[float], *, steps: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Return an optimiser whose learning rate also falls to a tenth at some epochs.

    `drops` are shares of the epochs, and `steps` is the length of the training. The i-th drop is at
    least i epochs after the start.
    """
    epochs = -(-steps // steps_per_epoch)
    at = [max(i, round(share * epochs)) for i, share in enumerate(sorted(drops), start=1)]

    def factor(step: Any) -> jax.Array:
        passed = jnp.asarray(step) // steps_per_epoch >= jnp.asarray(at, jnp.int32)
        return 0.1 ** passed.sum()

    return optax.chain(tx, optax.scale_by_schedule(factor)) if drops else tx


def drops_option(default: tuple[float, ...], doc: str) -> Any:
    """Declare a config field for the shares of a training after which the learning rate falls."""
    return option(default, doc, above=0, high=1)


def first_stage_loop(
    key: jax.Array, model: Model, data: Split, config: TrainConfig, info: DataInfo, loss: Loss
) -> TrainLoop:
    """Build the `TrainLoop` of a defence's first stage: training from scratch on all images."""
    return training_loop(
        stream(key, "train"), model.init(stream(key, "init")), data, config, info, loss
    )


def epoch_steps(count: int, batch_size: int) -> int:
    """Return the number of train steps in an epoch of `count` images, at least 1.

    It is the period of measurements that are made once an epoch.
    """
    return max(1, count // batch_size)


ASCENT = OptimConfig(lr=5e-4, nesterov=True, weight_decay=1e-4, schedule="constant")
"""The optimiser of ABL's unlearning."""


Trusted = Literal["class", "all"]


@dataclasses.dataclass(frozen=True)
class UnlearnConfig:
    """Settings of unlearning, by which ABL and DLP make a model forget suspect images.

    The defaults are ABL's, gradient ascent for 16 steps with learning rate 5e-4. Unlike ABL's, it
    stops when accuracy on the suspects is below chance.
    """

    kind: Kind = option(
        "ascent",
        "ascent: gradient ascent on the suspects' loss (ABL's); uniform: training towards a "
        "uniform prediction (d3jax's)",
    )
    descent: Descent = option(
        "none",
        "training on trusted images: turns: in alternation with unlearning (with ascent, D-BR's); "
        "together: in the same batch",
    )
    trusted: Trusted = option(
        "class",
        "half of the images that descent trusts: class: the least suspected of every class, in "
        "equal numbers; all: the least suspected of all",
    )
    share: float = option(
        0.25,
        "share of suspects in a batch, where descent is together (d3jax's)",
        above=0,
        high=0.9,
    )
    optimizer: OptimConfig = option(
        lambda: ASCENT, "optimiser and schedule (default: ABL's; DLP has ten times its lr)"
    )
    steps: int = option(
        16, "number of steps (ABL: 16, four epochs of 500 images; DLP: 100, d3jax's)", low=1
    )
    batch_size: int = option(
        128,
        "images a step, with turns of each kind; of suspects at most as many as there are",
        low=1,
    )
    batch_norm: Literal["train", "frozen"] = option(
        "train",
        "BatchNorm statistics: the batch's, which update the running ones (train, ABL's), or the "
        "stored ones (frozen)",
    )
    bounded: bool = option(
        True,
        "stop unlearning once accuracy on a batch of suspects is below chance; with descent it may "
        "resume (d3jax's; ABL has no such rule)",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_foreign(self, "descent", {"share": ("together",), "trusted": ("turns", "together")})


class Judged(NamedTuple):
    """The result of a defence's filter on N images: `scores`, ranking, `suspects` and `trusted`.

    `scores` maps the name of each score to its values [N]. `ranked` [N] are all rows, from the most
    to the least suspected. `suspects` and `trusted` are sorted rows. Half of the images are
    trusted.
    """

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
    """Score training images with a model; return as suspects those with the lowest `score`.

    There are ⌊ratio·N⌋ suspects, at least one. With the score `mixture`, there are fewer if fewer
    images belong more likely to the lower Gaussian. All processes get the same result.
    """
    scores = same_arrays(scores_of(model, variables, data))
    count = suspected(len(data.labels), ratio)
    if score == "mixture":
        count = max(1, min(count, int(np.sum(scores["mixture"] < 0.5))))
    ranked = ranking(scores[score], ties_of(score, scores))
    return suspect(scores, ranked, np.asarray(data.labels), ranked[:count], trusted)


def suspect(
    scores: dict[str, np.ndarray],
    ranked: np.ndarray,
    labels: np.ndarray,
    suspects: np.ndarray,
    trusted: Trusted,
) -> Judged:
    """Choose the images that a defence trusts, for given suspects, and return both as `Judged`.

    Half of all images are trusted: those that `ranked` suspects least, without the suspects. With
    `trusted` "class", equal numbers are taken from every class. A class with too few images gives
    all of them.
    """
    rest = ranked[~np.isin(ranked, suspects)][::-1]
    if trusted == "class":
        rest = rest[np.argsort(_places(labels[rest]), kind="stable")]
    return Judged(scores, ranked, np.sort(suspects), np.sort(rest[: len(labels) // 2]))


def _places(labels: np.ndarray) -> np.ndarray:
    """Return for each label [N] the number of equal labels before it."""
    places = np.zeros(len(labels), int)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        places[mine] = np.arange(len(mine))
    return places


def suspected(size: int, ratio: float) -> int:
    """Return the number of suspects among `size` training images: ⌊ratio · size⌋, at least 1."""
    return max(1, int(ratio * size))


def check_ratio(ratio: float, size: int) -> None:
    """Raise `ConfigError` where a defence's suspects, a share `ratio`, are less than one image."""
    if int(ratio * size) < 1:
        raise ConfigError(f"ratio: {ratio:g} of the {size} images is less than one")


def check_batch(part: str, batch_size: int, count: int, images: str) -> None:
    """Raise `ConfigError` where a batch is larger than the set of images that it is drawn from.

    `count` is the number of these images. The message names the `part` of the defence and describes
    the images by the words `images`.
    """
    if batch_size > count:
        raise ConfigError(f"{part}.batch_size: {batch_size} is more than the {count} {images}")


def check_unlearning(config: UnlearnConfig, size: int) -> None:
    """Raise `ConfigError` where an unlearning step needs more trusted images than there are.

    Half of the `size` images are trusted. A batch of suspects and trusted images must have room for
    both, or it raises too.
    """
    # With `mixture` there may be a single suspect, and a step then needs the most trusted images.
    _, trusted = parts_of(config.batch_size, config.descent, config.share, suspects=1)
    if trusted > size // 2:
        raise ConfigError(
            f"unlearn.batch_size: {config.batch_size} may want {trusted} trusted images a step, "
            f"more than the {size // 2} there are"
        )


def unlearning_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    data: Split,
    judged: Judged,
    config: UnlearnConfig,
) -> TrainLoop:
    """Build the `TrainLoop` by which a model unlearns suspect images by an `UnlearnConfig`.

    A learning-rate schedule that counts epochs counts steps here.
    """
    return unlearn_loop(
        key, model, variables, data, judged.suspects, judged.trusted,
        tx=make_optimizer(config.optimizer, steps=config.steps, steps_per_epoch=1),
        steps=config.steps, batch_size=config.batch_size, kind=config.kind,
        descent=config.descent, share=config.share, batch_norm=config.batch_norm,
        bounded=config.bounded,
    )  # fmt: skip


def appended(lines: list[LogRecord], more: list[LogRecord]) -> list[LogRecord]:
    """Join the log records of two consecutive train loops into one list of records.

    The steps and seconds of the second loop continue those of the first.
    """
    last = lines[-1] if lines else {"step": 0, "seconds": 0.0}
    return lines + [
        line | {name: line[name] + last[name] for name in ("step", "seconds")} for line in more
    ]


def found_shapes(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the arrays that a training-time defence reports on `size` images.

    The arrays [size] are, by name: the scores after the first stage (float32), and `suspects`
    (bool). `rescored` (float32) is the score by which a later stage ranks the images, and
    `rescored_entropy` (float32) breaks its ties. `labelled` (bool) are the images that kept their
    labels.
    """
    names = dict.fromkeys((*NAMES, "rescored", "rescored_entropy"), jnp.float32) | dict.fromkeys(
        ("suspects", "labelled"), jnp.bool_
    )
    return {name: jax.ShapeDtypeStruct((size,), dtype) for name, dtype in names.items()}


def found_of(size: int, scores: dict[str, np.ndarray], **more: Any) -> dict[str, np.ndarray]:
    """Return the arrays [size] that a training-time defence reports on its images, by name.

    `found_shapes` lists their names and dtypes. They come from `more` and `scores`. A mask in
    `more` is given as row numbers. An array that neither has is 0.
    """
    found: dict[str, np.ndarray] = {}
    for name, shape in found_shapes(size).items():
        value = more.get(name, scores.get(name, np.zeros(size)))
        if shape.dtype == jnp.bool_ and name in more:
            value = np.isin(np.arange(size), value)
        found[name] = np.asarray(value, shape.dtype)
    return found
