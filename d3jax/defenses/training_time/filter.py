"""Filtering: a training-time defence that leaves out the samples that a detector flags.

A model is trained on all images, any sample detector scores them, and a new model is trained from
scratch on those that it does not flag. Most papers of sample detectors end in this step, such as
spectral signatures (Tran, Li & Madry, NeurIPS 2018, arXiv 1811.00636).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, option
from ...config.loading import build, to_mapping
from ...config.recipes import TrainConfig
from ...core.errors import ConfigError, did_you_mean, names
from ...core.random import stream
from ...core.types import (
    DataInfo,
    Model,
    SampleDetector,
    Split,
    Trained,
    TrainingDefense,
    Variables,
)
from ...training.loop import Hooks, fit, trace_of
from ...training.step import classification_loss
from ..sample_detection import SAMPLE_DETECTORS
from .suspicion import check_batch, epoch_steps, first_stage_loop


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Settings of filtering, which trains again without the samples that a detector flags.

    Both trainings have the recipe `train`. A detector with a first stage of its own, such as
    `abl_isolation`, replaces the first of them.
    """

    detector: str = option("spectral", "name of the sample detector")
    settings: dict[str, Any] = option(dict, "settings of the detector, by name")
    train: TrainConfig = option(TrainConfig(), "training recipe of both models")

    def __post_init__(self) -> None:
        check_fields(self)
        self.detector_config()

    @property
    def variant(self) -> str:
        """The detector, which is a part of the default label."""
        return self.detector

    def detector_config(self) -> Any:
        """Return the config of the sample detector; raise `ConfigError` if there is none."""
        if self.detector not in SAMPLE_DETECTORS:
            raise ConfigError(
                f"detector: {self.detector!r} is not a sample detector: {names(SAMPLE_DETECTORS)}"
                f"{did_you_mean(self.detector, SAMPLE_DETECTORS)}"
            )
        return build(SAMPLE_DETECTORS[self.detector][0], self.settings, "settings.")

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence for the data set that `info` describes."""
        return make_filter(self, info)


def make_filter(config: FilterConfig, info: DataInfo) -> TrainingDefense:
    """Return filtering, a training-time defence that leaves out the samples that a detector flags.

    The detector also sees the reserved clean images. The second model begins from new random
    variables. `found` has `detected`, minus the detector's score, and the masks `suspects` (the
    flagged samples) and `labelled` (all others).
    """
    detector: SampleDetector = SAMPLE_DETECTORS[config.detector][1](config.detector_config(), info)
    stage = detector.first_stage

    def training(key: jax.Array, model: Model, data: Split) -> Any:
        return first_stage_loop(key, model, data, config.train, info, classification_loss(model))

    def begin(key: jax.Array, model: Model, data: Split) -> Any:
        return stage.begin(key, model, data) if stage else training(key, model, data)

    def train(
        key: jax.Array,
        model: Model,
        data: Split,
        begun: Variables,
        hooks: Hooks = Hooks(),
        *,
        reserved: Split,
    ) -> Trained:
        size = len(data.labels)
        scored = detector.score(stream(key, "detect"), model, begun, data, reserved, hooks)
        flagged = np.asarray(scored.flagged)
        kept = np.flatnonzero(~flagged)
        hooks.say(f"{config.detector}: leaves out {flagged.sum()} of {size} images")
        if len(kept) < config.train.batch_size:
            raise ConfigError(
                f"{config.detector}: leaves {len(kept)} of {size} images, want at least "
                f"train.batch_size: {config.train.batch_size}"
            )
        rest = Split(*(np.asarray(part)[kept] for part in data))
        loop = training(stream(key, "again"), model, rest)
        period = epoch_steps(len(kept), config.train.batch_size)
        state, records = fit(loop, hooks.within("again", period))
        found = {"detected": -scored.scores, "suspects": flagged, "labelled": ~flagged}
        return Trained(state.variables, found, trace_of(records))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_batch("train", config.train.batch_size, size, "images")
        detector.check(model, shapes, size, reserved)

    def epoch(size: int) -> int:
        return stage.epoch(size) if stage else epoch_steps(size, config.train.batch_size)

    settings = stage.settings if stage else {"train": to_mapping(config.train)}
    return TrainingDefense(begin, settings, train, found_by_detector, check, epoch, ("reserved",))


def found_by_detector(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what filtering reports on `size` training images, by name."""
    kinds = {"detected": jnp.float32, "suspects": jnp.bool_, "labelled": jnp.bool_}
    return {name: jax.ShapeDtypeStruct((size,), kind) for name, kind in kinds.items()}
