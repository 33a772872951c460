"""The study context: the data, model and settings that all nodes of a study share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config.loading import recipe_of, to_mapping
from ..config.recipes import LoopConfig
from ..config.study import Choice, StudyConfig
from ..core.errors import ConfigError
from ..core.types import Dataset, Device, Model, Split
from ..data import fingerprint, reserve
from ..data.arrays import check_classes, few, split_fingerprint
from ..interop.external_model import ExternalModel, read_external_model
from ..runtime.compilation import precision_advice, without_onednn
from ..runtime.distributed import broadcast_from_host0
from ..runtime.environment import backend, environment
from ..runtime.progress import Progress
from ..training.memory import memory_free
from ..training.streaming import check_streaming
from .registries import ATTACKS, DATASETS, MODELS


class Memo:
    """A cache of computed values that a study's nodes share; it keeps the newest `size` values."""

    def __init__(self, size: int = 8):
        self._size, self._values = size, {}

    def __call__(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the cached value of a key; without one, call `make()` and cache the result."""
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._size:
                del self._values[next(iter(self._values))]
        return self._values[key]


class StudyContext(NamedTuple):
    """The data, model, settings and devices that all nodes of a study share.

    `fresh` are the training images that are reserved for evolutions (None: none); `fresh_hash` is
    a hash of their contents. `externals` are the external models that the study reads, by the text
    that names each in the config. `elsewhere` are the training images of `reserved.from` (None:
    reserved images are the study's). With `together`, nodes with the same program run as its
    members. With `streamed`, training images stay on the host.
    """

    config: StudyConfig
    dataset: Dataset
    fresh: Split | None
    fresh_hash: str
    data_hash: str
    model: Model
    precision: str
    workdir: Path
    progress: Progress
    environment: dict[str, Any]
    devices: tuple[Device, ...]
    profile: str
    together: bool
    streamed: bool
    externals: Mapping[str, ExternalModel]
    elsewhere: Split | None
    memo: Memo

    @property
    def training_set(self) -> str:
        """Return the fingerprint of the clean training images and labels, without `fresh` ones."""
        return self.memo("training set", lambda: split_fingerprint(self.dataset.train))

    def external(self, choice: Choice) -> ExternalModel | None:
        """Return the external model of an attack of the study; None if its model is trained."""
        return self.externals.get(choice.checkpoint or self.config.model.checkpoint)

    def knows_training(self, choice: Choice) -> bool:
        """Return whether the training set of an attack's model is known.

        It is if the model is trained here, or read from a file that d3jax exported, on these data.
        """
        external, attack = self.external(choice), ATTACKS[choice.name][1]
        if external is None:
            return True
        preparation = attack(choice.config, self.dataset.info).preparation
        replaces = preparation is not None and preparation.replaces  # its images are not stored
        settings = recipe_of(choice.config)
        return not replaces and external.knows_training(choice.name, settings, self.training_set)


def open_context(
    config: StudyConfig, workdir: Path, progress: Progress, profile: str = ""
) -> StudyContext:
    """Load the data set of a study, build its model, and return both in a `StudyContext`.

    No file is written.
    """
    on_cpu = backend() == "cpu"
    devices = _devices(config.loop, on_cpu)
    dataset = DATASETS[config.dataset.name][1](config.dataset.config)
    progress.say(_described(dataset))
    precision = config.precision
    if precision == "auto":
        precision = "float32" if on_cpu else "bfloat16"
    progress.say(f"computing on {len(devices)} × {devices[0].device_kind}, {precision}")
    for line in filter(None, (without_onednn(), precision_advice(precision))):
        progress.say(line)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    model = MODELS[config.model.name][1](config.model.config, dataset.info, dtype)
    externals = _read_externals(config, model)
    for external in externals.values():
        progress.say(external.text)
    dataset, fresh = _divide(dataset, config.fresh)
    source = f"fresh: {config.fresh:g}: the remaining training set of {dataset.info.name}"
    check_classes(source, dataset.train.labels, dataset.info.classes)
    data_hash = fingerprint(dataset)
    fresh_hash = fingerprint(dataset._replace(train=fresh)) if fresh else ""
    streamed = _is_streamed(config.loop, dataset, progress)
    if not streamed:
        train, test = (Split(*map(jnp.asarray, split)) for split in dataset[:2])
        dataset = Dataset(train, test, dataset.info)
        fresh = fresh and Split(*map(jnp.asarray, fresh))  # one copy for all evolution runs
    members = config.loop.members
    together = members == "together" or (members == "auto" and not on_cpu)
    return StudyContext(
        config=config,
        dataset=dataset,
        fresh=fresh,
        fresh_hash=fresh_hash,
        data_hash=data_hash,
        model=model,
        precision=precision,
        workdir=workdir,
        progress=progress,
        environment=environment() | {"precision": precision},
        devices=devices,
        profile=profile,
        together=together,
        streamed=streamed,
        externals=externals,
        elsewhere=_read_elsewhere(config, dataset),
        memo=Memo(),
    )


def _read_externals(config: StudyConfig, model: Model) -> dict[str, ExternalModel]:
    """Read the external models that a study names, by the text that names each."""
    chosen = {config.model.checkpoint: config.model} if config.model.checkpoint else {}
    for choice in config.attacks:
        if choice.checkpoint:
            chosen[choice.checkpoint] = replace(config.model, checkpoint=choice.checkpoint)
    return {text: read_external_model(choice, model) for text, choice in chosen.items()}


def _read_elsewhere(config: StudyConfig, dataset: Dataset) -> Split | None:
    """Read the data sets of `reserved.from`; return their training images, one after another.

    Raises `ConfigError` if their images or classes are not those of the study's data set.
    """
    if not config.reserved_from:
        return None
    parts, info = [], dataset.info
    for choice in config.reserved_from:
        found = DATASETS[choice.name][1](choice.config)
        own = (found.info.shape, found.info.num_classes)
        if own != (info.shape, info.num_classes):
            raise ConfigError(
                f"reserved.from: {choice.label} has images of {list(own[0])} in {own[1]} classes, "
                f"the study's are {list(info.shape)} in {info.num_classes}"
            )
        parts.append(found.train)
    return Split(
        *(np.concatenate(list(map(np.asarray, each))) for each in zip(*parts, strict=True))
    )


LISTED = 20
"""The largest number of classes of which the first line of a run prints every name."""


def _described(dataset: Dataset) -> str:
    """Return a line that describes a data set: numbers and size of images, names of classes."""
    (train, test, info), size = dataset, "×".join(map(str, dataset.info.shape))
    named = any(name != str(label) for label, name in enumerate(info.classes))
    shown = (f"{label} {name}" for label, name in enumerate(info.classes))
    names_of = list(shown if named else info.classes)
    classes = ", ".join(names_of) if len(names_of) <= LISTED else few(names_of)
    counts = f"{len(train.labels)} training and {len(test.labels)} test images of {size}"
    return f"{info.name}: {counts} in {info.num_classes} classes: {classes}"


def _devices(loop: LoopConfig, on_cpu: bool) -> tuple[Device, ...]:
    """Return the jax devices that a study computes on, from the setting `loop.devices`.

    Raises `ConfigError` if the setting `loop.devices` exceeds the number of devices, or if it is
    set although several processes run.
    """
    alone = jax.process_count() == 1
    if loop.devices > jax.device_count() or (loop.devices and not alone):
        there = f"{jax.device_count()} here" if alone else "several processes, which share all"
        raise ConfigError(f"loop.devices: {loop.devices} asked for, there are {there}")
    return tuple(jax.devices()[: loop.devices or (1 if on_cpu and alone else None)])


def _divide(dataset: Dataset, share: float) -> tuple[Dataset, Split | None]:
    """Take a random `share` of the training images out of a data set; return both parts.

    The first part is the data set without these images. The second is their `Split`, or None if
    `share` is 0.
    """
    if not share:
        return dataset, None
    order = np.random.default_rng(0).permutation(len(dataset.train.labels))
    first, kept = np.split(order, [round((1 - share) * len(order))])

    def take(rows):
        return Split(*(np.asarray(part)[np.sort(rows)] for part in dataset.train))

    return dataset._replace(train=take(first)), take(kept)


def _is_streamed(loop: LoopConfig, dataset: Dataset, progress: Progress) -> bool:
    """Return whether a study keeps training images on the host and streams them to the device.

    With the placement "auto" they do if they take more than half of the free device memory. That
    decision is printed.
    """
    images, free = dataset.train.images.nbytes, memory_free()
    streamed = loop.placement == "stream"
    # `free` is None on a CPU, whose memory holds the images already.
    if loop.placement == "auto" and free is not None:
        streamed = bool(broadcast_from_host0([images > free / 2])[0])
        if streamed:
            progress.say(
                f"streaming: {images / 2**30:.2f} GiB of training images, "
                f"{free / 2**30:.2f} GiB of memory are free"
            )
    if streamed:
        check_streaming()
    return streamed


def fresh_split(context: StudyContext) -> Split:
    """Return the training images that a study reserves for evolution runs, as a `Split`.

    The study must have evolutions, so that some are reserved.
    """
    assert context.fresh is not None
    return context.fresh


def reserved_split(context: StudyContext, seed: int) -> Split:
    """Return the reserved clean images that a defender has under one seed, as a `Split`."""
    train = context.elsewhere or context.dataset.train
    rows = reserve(train, context.config.reserved, seed, context.dataset.info.num_classes)
    return Split(train.images[rows], train.labels[rows])


def reserved_settings(context: StudyContext) -> dict[str, Any]:
    """Return what determines the reserved images besides the data set and seed, for recipes."""
    settings = to_mapping(context.config.reserved)
    source = context.elsewhere
    if source is None:
        return settings
    return settings | {"from": context.memo("reserved.from", lambda: split_fingerprint(source))}
