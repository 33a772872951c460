"""Settings of training and of train loops that studies, attacks and defences share."""

from __future__ import annotations

import dataclasses
from typing import Literal

from .fields import check_fields, option


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of an optimiser and its learning-rate schedule.

    Weight decay is coupled L2 for sgd, adam and amsgrad, as in PyTorch, and decoupled for adamw.
    """

    name: Literal["sgd", "adam", "amsgrad", "adamw"] = option(
        "sgd", "optimiser; amsgrad: PyTorch's Adam with amsgrad"
    )
    lr: float = option(0.01, "learning rate (the highest of the schedule)", above=0, member=True)
    momentum: float = option(0.9, "SGD momentum", low=0, high=1, member=True)
    nesterov: bool = option(False, "Nesterov momentum")
    weight_decay: float = option(
        5e-4, "weight decay: coupled L2 (sgd, adam, amsgrad), decoupled (adamw)", low=0, member=True
    )
    schedule: Literal[
        "constant",
        "cosine",
        "cosine_epoch",
        "cosine_epoch_100",
        "cosine_40",
        "cosine_100",
        "onecycle",
        "multistep",
        "drop",
        "half_drop",
        "early_drop",
        "fifths",
    ] = option(
        "cosine_epoch",
        "learning-rate schedule; cosine_epoch: cosine to 0, constant within an epoch, as in most "
        "PyTorch recipes; cosine_epoch_100: the same over 100 epochs, whatever the length; "
        "cosine: cosine to 0, changed every step; cosine_40: the same to 0.4 lr; "
        "cosine_100: cosine to 0 over 100 steps, up again over the next 100, and so on; "
        "multistep: lr/10 after 1/20 of the epochs, lr/100 after half; drop: lr/10 after two "
        "thirds; half_drop: lr/10 after half; early_drop: lr/10 after a tenth; "
        "fifths: lr/10 after each fifth",
    )

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Settings of sharpness-aware minimisation (SAM) in training; off at ρ 0."""

    rho: float = option(0.0, "ρ, length of the step to where the gradient is taken (0: off)", low=0)
    adaptive: bool = option(True, "scale the step by the size of each weight (ASAM)")

    __post_init__ = check_fields


NO_SAM = SamConfig()
"""SAM switched off."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training of a model, backdoored or clean.

    The defaults are BackdoorBench's recipe, which most published numbers use.
    """

    epochs: int = option(100, "passes over the training set", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(128, "images per step; the last short batch is dropped", low=1)
    augment: Literal["auto", "none", "cutout"] = option(
        "auto",
        "data augmentation; auto: the crop and flip that the data set allows; cutout: these, and "
        "a square of 2×2 pixels is cut out, as in ABL",
    )
    optimizer: OptimConfig = option(OptimConfig, "optimiser and schedule")
    sam: SamConfig = option(
        SamConfig, "sharpness-aware minimisation, as an adaptive attacker uses", added=True
    )

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True)
class ReservedConfig:
    """Settings of the reserved clean images, which post-training defences may use.

    They are drawn by the seed from the training set, or from that of `reserved.from`.
    """

    fraction: float = option(0.05, "reserved share of the training set", above=0, high=1)
    count: int = option(0, "number of reserved images instead of a share (0: use fraction)", low=0)
    stratified: bool = option(False, "draw the same share of every class")
    classes: tuple[int, ...] = option(
        (), "draw only images of these classes (empty: of all)", low=0
    )
    imbalance: float = option(
        1.0,
        "images of the last class for each of the first; the numbers of the classes between fall "
        "geometrically (1: no imbalance)",
        above=0,
        high=1,
    )

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Settings of how train loops run: logging, checkpoints, devices and placement.

    These settings change the results of a step by rounding at most. With equal settings the results
    are equal to the bit.
    """

    log_every: int = option(50, "steps between log records in metrics.jsonl", low=1)
    save_every: int = option(200, "steps between training checkpoints", low=1)
    save_seconds: float = option(20.0, "minimum seconds between training checkpoints", low=0)
    steps_per_call: int = option(
        0,
        "steps in one compiled call (0: 1 on CPU, 25 on accelerators); log_every and the other "
        "periods are best multiples of it",
        low=0,
    )
    members: Literal["auto", "together", "apart"] = option(
        "auto",
        "how seeds and sweeps that share a program run: together in one call, or one after "
        "another; auto: together, except on CPU",
    )
    devices: int = option(0, "number of devices that share the work (0: 1 on CPU, else all)", low=0)
    placement: Literal["auto", "device", "stream"] = option(
        "auto",
        "device: keep the training images on the device; stream: copy them to it batch by batch; "
        "auto: device if they fill at most half of its free memory",
    )
    watch_every: int = option(
        0,
        "steps between ACC/ASR measurements during repairs (0: none), for plots only; rounded "
        "to whole compiled calls",
        low=0,
    )
    eval_batch: int = option(500, "images per batch in evaluation", low=1)
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (), "where metrics are also written, besides metrics.jsonl"
    )

    __post_init__ = check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Settings of a repair's train loop: its length, batch size, augmentation and optimiser.

    The loop runs on the reserved images. The config of each method has a schedule with the method's
    own optimiser. In Python, `dataclasses.replace(D3Config().schedule, steps=40)` changes a part of
    it.
    """

    epochs: int = option(100, "passes over the reserved images", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(
        256, "images per step; an epoch is cut into equal batches of at most this size", low=1
    )
    augment: Literal["auto", "none"] = option(
        "auto", "data augmentation; auto: the crop and flip that the data set allows"
    )
    optimizer: OptimConfig = option(dataclasses.MISSING, "optimiser and schedule")

    __post_init__ = check_fields
