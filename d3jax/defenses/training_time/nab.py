"""NAB, non-adversarial backdoor (Liu et al., ICCV 2023, arXiv 2307.15539).

1. Isolation: a training whose loss is kept from falling below γ. The images with the lowest loss
   are suspects.
2. Pseudo-labels: a net that is trained on clean images only predicts a class of every suspect.
3. Training: suspects have their pseudo-labels. A suspect whose label was another one gets the
   defender's stamp, so that the model learns to distrust the attacker's trigger beside it.

At test time every image is stamped (`stamped.stamped`). The paper's filter of test images is
`stamped.rejected`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from ...config.fields import check_fields, option, presets
from ...config.loading import to_mapping
from ...config.recipes import OptimConfig, TrainConfig
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import (
    Array,
    DataInfo,
    Model,
    Split,
    Trained,
    TrainingDefense,
    Variables,
)
from ...data.batched import batched_map
from ...metrics.attack_success import predict
from ...runtime.distributed import same_arrays
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.step import classification_loss
from .abl import ABLConfig, isolation_loss
from .stamped import Stamp, check_side, stamped, stamped_loss
from .suspicion import (
    appended,
    check_batch,
    check_ratio,
    drops_option,
    epoch_steps,
    first_stage_loop,
    found_of,
    found_shapes,
    judge,
    training_loop,
)

EVAL_BATCH = 500
"""Images in a batch of the pseudo-labelling."""


def _recipe(
    epochs: int,
    augment: Literal["auto", "none", "cutout"],
    lr: float,
    schedule: Literal["constant", "cosine_epoch"] = "constant",
    batch_size: int = 64,
    weight_decay: float = 1e-4,
) -> TrainConfig:
    optimizer = OptimConfig(lr=lr, weight_decay=weight_decay, schedule=schedule)
    return TrainConfig(epochs=epochs, batch_size=batch_size, augment=augment, optimizer=optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NABConfig:
    """Settings of NAB, which trains a defender's backdoor against that of the attacker.

    NAB assumes reserved clean images: the authors have 5 % of the training set. It always isolates
    the share `ratio` of the images. On a clean set these are clean, and those that the pseudo-label
    net classifies wrongly get a wrong label and the stamp.

    The settings are a preset, and the values that differ from it. The preset `authors` has 20
    epochs of isolation, 100 epochs on the reserved images and 100 epochs of training, on ResNet-18.
    The preset `backdoorbench` has its learning rates, batch sizes and weight decay, and isolates
    10 %. Its learning rate is constant, because its program steps the schedule of another
    optimiser. The preset `short` is for two CPU cores. It has 3 of the 20 epochs, and then 40 and
    15 of the 100.

    Deviations:

    - The learning rate of the isolation is constant. The authors' falls to 0.91 of it.
    - The cosine of the training ends at 0. The authors' ends at 0.008 of the learning rate.
    - Cutout makes a square black. The authors' square has the mean colour.
    - BackdoorBench takes pseudo-labels from the nearest class centre of a self-supervised net. Here
      all presets take them from a net trained on the reserved images (the paper's VD).
    """

    preset: Literal["authors", "backdoorbench", "short"] = option(
        "authors", "source of ratio, isolate, pseudo and train, where they are not given"
    )
    gamma: float = option(0.5, "γ, loss below which isolation does not train further", low=0)
    ratio: float = option(0.05, "share of the images that is isolated", above=0, high=0.5)
    side: int = option(2, "side of the stamp at the top left, in pixels", low=1)
    isolate: TrainConfig = option(
        _recipe(20, "none", 0.1), "training recipe of the isolation on all images"
    )
    pseudo: TrainConfig = option(
        _recipe(100, "cutout", 0.01),
        "training recipe of the pseudo-label net on the reserved images",
    )
    drops: tuple[float, ...] = drops_option(
        (0.2, 0.6),
        "shares of the epochs of pseudo after which its learning rate falls to a tenth, besides "
        "its schedule",
    )
    train: TrainConfig = option(
        _recipe(100, "cutout", 0.1, "cosine_epoch"),
        "training recipe of the model on all images, with stamps and pseudo-labels",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence NAB for the data set that `info` describes."""
        return make_nab(self, info)


PRESETS = presets(
    "preset",
    NABConfig(preset="authors"),
    NABConfig(
        preset="backdoorbench",
        ratio=0.1,
        isolate=_recipe(20, "none", 0.01, weight_decay=5e-4),
        train=_recipe(100, "auto", 0.01, batch_size=256),
    ),
    NABConfig(
        preset="short",
        isolate=_recipe(3, "none", 0.1),
        pseudo=_recipe(40, "cutout", 0.01),
        train=_recipe(15, "cutout", 0.1, "cosine_epoch"),
    ),
)


def stamp_of(config: NABConfig, info: DataInfo) -> Stamp:
    """Return NAB's stamp: the mean colour of the data set, which is 0 in normalised space."""
    return Stamp(config.side, tuple(info.mean))


def pseudo_net(
    config: NABConfig, info: DataInfo, key: jax.Array, model: Model, reserved: Split, hooks: Hooks
) -> tuple[Variables, list[LogRecord]]:
    """Train NAB's pseudo-label net on the reserved images; return its variables and log records."""
    loop = training_loop(
        key, model.init(stream(key, "init")), reserved, config.pseudo, info,
        classification_loss(model), drops=config.drops,
    )  # fmt: skip
    period = epoch_steps(len(reserved.labels), config.pseudo.batch_size)
    state, lines = fit(loop, hooks.within("pseudo", period))
    return state.variables, lines


def pseudo_labels(
    network: Model, variables: Variables, images: UInt8[Array, "N H W C"]
) -> Int[np.ndarray, " N"]:
    """Return the classes [N] that a network predicts for images.

    `network` stamps the images first, as in the authors' program.
    """
    compute = functools.partial(predict, network, variables)
    found = batched_map(compute, np.asarray(images), batch_size=EVAL_BATCH)
    return same_arrays({"labels": found})["labels"]


def relabelled(
    labels: Int[np.ndarray, " N"], suspects: Int[np.ndarray, " S"], pseudo: Int[np.ndarray, " S"]
) -> tuple[Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Return the labels [N] that NAB trains on, and the mask [N] of the images to be stamped.

    The `suspects` are row numbers, and get the labels `pseudo`. Those whose label changes are
    stamped.
    """
    found = np.array(labels)
    found[suspects] = pseudo
    return found, found != labels


def make_nab(config: NABConfig, info: DataInfo) -> TrainingDefense:
    """Return NAB, a training-time defence that stamps relabelled suspects and all test images.

    `network` is the model that stamps every image. In `found`, `labelled` are the images that kept
    their labels. All others are suspects with another pseudo-label.

    The isolation loss |L − γ| + γ of the batch mean L, which the authors call LGA, is ABL's
    `flooding`. A first stage of ABL with the same recipe is therefore shared.
    """
    check_side(config.side, info)
    stamp, abl = stamp_of(config, info), ABLConfig(loss="flooding", gamma=config.gamma)

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        loss = isolation_loss(abl, model)
        return first_stage_loop(stream(key, "isolate"), model, data, config.isolate, info, loss)

    def train(
        key: jax.Array,
        model: Model,
        data: Split,
        begun: Variables,
        hooks: Hooks = Hooks(),
        *,
        reserved: Split,
    ) -> Trained:
        size, labels = len(data.labels), np.asarray(data.labels)
        judged = judge(model, begun, data, "cross_entropy", config.ratio)
        clean, lines = pseudo_net(config, info, stream(key, "pseudo"), model, reserved, hooks)
        suspects = np.asarray(data.images)[judged.suspects]
        pseudo = pseudo_labels(stamped(model, stamp), clean, suspects)
        new, marked = relabelled(labels, judged.suspects, pseudo)
        hooks.say(
            f"train: {marked.sum()} of {len(suspects)} suspects have another pseudo-label and get "
            "the stamp"
        )
        start = model.init(stream(key, "init"))
        loop = training_loop(
            stream(key, "train"), start, Split(data.images, new), config.train, info,
            stamped_loss(model, stamp), loss_inputs=jnp.asarray(marked),
        )  # fmt: skip
        state, more = fit(loop, hooks.within("train", epoch_steps(size, config.train.batch_size)))
        kept = np.flatnonzero(~marked)
        found = found_of(size, judged.scores, suspects=judged.suspects, labelled=kept)
        return Trained(state.variables, found, trace_of(appended(lines, more)))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_ratio(config.ratio, size)
        check_batch("isolate", config.isolate.batch_size, size, "images")
        check_batch("pseudo", config.pseudo.batch_size, reserved, "reserved images")
        check_batch("train", config.train.batch_size, size, "images")

    def epoch(size: int) -> int:
        return epoch_steps(size, config.isolate.batch_size)

    settings = {"abl": to_mapping(config.isolate), "loss": abl.loss, "gamma": abl.gamma}
    return TrainingDefense(
        begin, settings, train, found_shapes, check, epoch, ("reserved",),
        network=lambda model: stamped(model, stamp),
    )  # fmt: skip
