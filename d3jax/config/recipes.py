"""Recipes that studies, attacks and defences share, as frozen dataclasses. No jax in here."""

from __future__ import annotations

import dataclasses
from typing import Literal

from .fields import check_fields, option


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule.

    Weight decay is coupled L2, as PyTorch's SGD and Adam have it.
    """

    name: Literal["sgd", "adam", "adamw"] = option("sgd", "optimiser")
    lr: float = option(0.01, "learning rate (the peak of a schedule)", above=0, member=True)
    momentum: float = option(0.9, "SGD momentum", low=0, high=1, member=True)
    nesterov: bool = option(False, "Nesterov momentum")
    weight_decay: float = option(
        5e-4, "weight decay: coupled L2 (sgd, adam), decoupled (adamw)", low=0, member=True
    )
    schedule: Literal["constant", "cosine", "cosine_epoch", "onecycle", "multistep", "drop"] = (
        option(
            "cosine_epoch",
            "cosine_epoch: to 0, constant within an epoch, as the field's PyTorch recipes step it; "
            "cosine: per step; multistep: a tenth after 1/20 of the epochs, a hundredth after "
            "half; drop: a tenth after two thirds",
        )
    )

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training of the (backdoored) model.

    Defaults: the recipe most published numbers rest on (BackdoorBench's).
    """

    epochs: int = option(100, "passes over the training set", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(128, "images a step; the last short batch is dropped", low=1)
    augment: Literal["auto", "none", "cutout"] = option(
        "auto",
        "auto: the crop and flip that the data set allows; cutout: these, and a square of 2×2 "
        "pixels cut out, as ABL",
    )
    optimizer: OptimConfig = option(OptimConfig, "optimiser and schedule")

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True)
class ReservedConfig:
    """The clean images a post-training defence may use, drawn from the training set by the seed."""

    fraction: float = option(0.05, "share of the training set", above=0, high=1)
    count: int = option(0, "number of images instead of a share (0: use fraction)", low=0)
    stratified: bool = option(False, "the same share of every class")

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How optimiser loops run.

    A step's numbers agree to rounding whatever stands here, and to the bit where nothing changes.
    """

    log_every: int = option(50, "steps between lines of metrics.jsonl", low=1)
    save_every: int = option(200, "steps between training checkpoints", low=1)
    save_seconds: float = option(20.0, "but at least so many seconds between them", low=0)
    steps_per_call: int = option(
        0,
        "steps in one compiled call (0: 1 on CPU, 25 on accelerators); the periods are best "
        "multiples of it",
        low=0,
    )
    members: Literal["auto", "together", "apart"] = option(
        "auto",
        "seeds and sweeps that share a program: in one call, or one after another; auto: "
        "together but on CPU",
    )
    devices: int = option(
        0, "how many devices share the work (0: all of them, but 1 on CPU)", low=0
    )
    placement: Literal["auto", "device", "stream"] = option(
        "auto",
        "training images kept on the device, or brought batch by batch; auto: kept where they "
        "fill at most half of its free memory",
    )
    watch_every: int = option(
        0,
        "steps between ACC/ASR measurements during repairs (0: none), in whole calls of a loop, "
        "so that they may be some more; for plots only",
        low=0,
    )
    eval_batch: int = option(500, "images a call in evaluation", low=1)
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (), "where metrics are written besides metrics.jsonl"
    )

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long and with what a repair runs on the reserved images.

    Each method's config has one with the method's own optimiser, and by hand
    `dataclasses.replace(D3Config().schedule, steps=40)` changes a part of it.
    """

    epochs: int = option(100, "passes over the reserved images", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(
        256, "images a step; an epoch is cut into equal batches of at most this", low=1
    )
    augment: Literal["auto", "none"] = option(
        "auto", "auto: the crop and flip that the data set allows"
    )
    optimizer: OptimConfig = option(dataclasses.MISSING, "optimiser and schedule")

    __post_init__ = check_fields
