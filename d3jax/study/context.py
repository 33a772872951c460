"""What all cells of a study share: its data, model, folders and devices."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config.recipes import LoopConfig
from ..config.study import StudyConfig
from ..core.errors import ConfigError
from ..core.types import Dataset, Model, Split
from ..data import DATASETS, fingerprint, reserve
from ..models import MODELS
from ..results.metric_writer import Journal
from ..runtime.distributed import broadcast_from_host0
from ..runtime.environment import environment
from ..runtime.progress import Progress
from ..training.scan import memory_free
from ..training.streaming import check_streaming
from .executor import Recorder
from .external_model import Suspect, read_suspect


class Lab(NamedTuple):
    """What all cells of a study share. `fresh` are the training images kept back for evolutions, `fresh_hash` that of their contents,
    `suspect` the model that was trained elsewhere, if there is one."""

    config: StudyConfig
    dataset: Dataset
    fresh: Split | None
    fresh_hash: str
    data_hash: str
    model: Model
    precision: str
    workdir: Path
    recorder: Recorder
    together: bool
    streamed: bool
    suspect: Suspect | None = None


def open_lab(config: StudyConfig, workdir: Path, progress: Progress, profile: str = "") -> Lab:
    """Loads the data and builds the model; writes nothing."""
    loop, on_cpu, alone = config.loop, jax.default_backend() == "cpu", jax.process_count() == 1
    if loop.devices > jax.device_count() or (loop.devices and not alone):
        there = (
            f"{jax.device_count()} here" if alone else "several processes, which share all theirs"
        )
        raise ConfigError(f"loop.devices: {loop.devices} asked for, there are {there}")
    devices = tuple(jax.devices()[: loop.devices or (1 if on_cpu and alone else None)])
    dataset = DATASETS[config.dataset.name][1](config.dataset.config)
    precision = config.precision
    if precision == "auto":
        precision = "float32" if on_cpu else "bfloat16"
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    model = MODELS[config.model.name][1](config.model.config, dataset.info, dtype)
    suspect = None
    if config.model.checkpoint:
        suspect = read_suspect(config.model, model)
        progress.say(suspect.text)
    journal = Journal(workdir / "metrics.jsonl")
    recorder = Recorder(
        loop, environment() | {"precision": precision}, journal, progress, devices, profile
    )
    dataset, fresh = _divide(dataset, config.fresh)
    data_hash = fingerprint(dataset)
    fresh_hash = fingerprint(dataset._replace(train=fresh)) if fresh else ""
    streamed = _is_streamed(loop, dataset, progress)
    if not streamed:
        dataset = Dataset(*(Split(*map(jnp.asarray, split)) for split in dataset[:2]), dataset.info)
        fresh = fresh and Split(*map(jnp.asarray, fresh))  # one copy for all lineages
    together = loop.members == "together" or (loop.members == "auto" and not on_cpu)
    return Lab(
        config,
        dataset,
        fresh,
        fresh_hash,
        data_hash,
        model,
        precision,
        workdir,
        recorder,
        together,
        streamed,
        suspect,
    )


def _divide(dataset: Dataset, share: float) -> tuple[Dataset, Split | None]:
    """The data set without a `share` of its training images, and those."""
    if not share:
        return dataset, None
    order = np.random.default_rng(0).permutation(len(dataset.train.labels))
    first, kept = np.split(order, [round((1 - share) * len(order))])
    take = lambda rows: Split(*(np.asarray(part)[np.sort(rows)] for part in dataset.train))
    return dataset._replace(train=take(first)), take(kept)


def _is_streamed(loop: LoopConfig, dataset: Dataset, progress: Progress) -> bool:
    """Whether training images stay on the host. Says so where that was decided here."""
    images, free = dataset.train.images.nbytes, memory_free()
    streamed = loop.placement == "stream"
    if (
        loop.placement == "auto" and free is not None
    ):  # a CPU's memory is where the images are already
        streamed = bool(broadcast_from_host0([images > free / 2])[0])
        if streamed:
            progress.say(
                f"streaming: {images / 2**30:.2f} GiB of training images, {free / 2**30:.2f} GiB of memory are free"
            )
    if streamed:
        check_streaming()
    return streamed


def reserved_split(lab: Lab, seed: int) -> Split:
    """The defender's clean images of `seed`."""
    train, _, info = lab.dataset
    rows = reserve(train, lab.config.reserved, seed, info.num_classes)
    return Split(train.images[rows], train.labels[rows])
