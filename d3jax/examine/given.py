"""What an examination is given: the model, and clean, suspect and unlabelled images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config.loading import build
from ..config.stored_model import header_text, model_path
from ..config.study import Choice
from ..core.errors import CheckpointError, DataError, names
from ..core.types import DataInfo, Model, Split, Variables
from ..deployment import LoadedModel, load_model
from ..interop import read_tensors
from ..interop.architecture import Architecture, recognise
from ..interop.external_model import ABOUT, TRIGGER, read_external_model, without
from ..models import MODELS
from .images import Images, Wanted, read_images
from .normalisation import choose_normalisation, given_normalisation

Facts = list[tuple[str, str]]
"""Pairs (what, text) for the page of an examination."""


class Given(NamedTuple):
    """The subjects of an examination, checked against each other.

    `info` describes the images of the model. `clean`, `suspects`, `inputs` and `files` are those of
    `Images`. `facts` say what was read, and what was guessed.
    """

    model: Model
    variables: Variables
    info: DataInfo
    clean: Split | None
    suspects: Split | None
    inputs: np.ndarray | None
    files: list[str]
    facts: Facts


def read_given(
    model: str,
    clean: str | Path | None = None,
    suspects: str | Path | None = None,
    inputs: str | Path | None = None,
    *,
    size: int = 32,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    checkpoint_key: str = "",
    ignore: tuple[str, ...] = (),
) -> Given:
    """Read the model and all images; guess what the files do not say.

    A file of `d3jax.export` says its network and normalisation. Of another file, the architecture
    follows from the names and shapes of the tensors. Without `mean` and `std`, its normalisation is
    that of `choose_normalisation`. Pictures in folders are resized to `size` pixels.
    `checkpoint_key` and `ignore` are as in a study's config.

    Raises `CheckpointError`, `ConfigError` or `DataError` where something cannot be read, or where
    the images do not belong to the model.
    """
    file = model_path(model, "--model")
    if file.is_dir():
        raise CheckpointError(
            f"--model: {file} is a folder; want a file (python -m d3jax.export writes one of a "
            "model in a run folder)"
        )
    paths = (clean, suspects, inputs)
    if header_text(file, ABOUT) is not None:
        loaded, images, facts = _exported(file, paths)
    else:
        choice, found = _choice(file, checkpoint_key, ignore)
        images = read_images(*paths, Wanted(found.channels, found.classes, size))
        loaded, facts = _recognised(choice, found, images, mean, std)
    subjects = (images.clean, images.suspects, images.inputs, images.files)
    return Given(*loaded, *subjects, facts + images.facts)


def _exported(
    file: Path, paths: tuple[str | Path | None, ...]
) -> tuple[LoadedModel, Images, Facts]:
    """Read a model that d3jax exported, and images of its shape and classes."""
    loaded = load_model(file)
    height, width, channels = loaded.info.shape
    clean, suspects, inputs = paths
    wanted = Wanted(channels, loaded.info.num_classes, height)
    images = read_images(clean, suspects, inputs, wanted)
    if images.shape != loaded.info.shape:
        raise DataError(
            f"the images are of {images.shape[0]}×{images.shape[1]}, "
            f"and the model was trained on {height}×{width}"
        )
    facts = [
        ("Model", f"{file}, exported by d3jax"),
        ("Network and normalisation", "those that the file says"),
    ]
    return loaded, images, facts


def _choice(
    file: Path, checkpoint_key: str, ignore: tuple[str, ...]
) -> tuple[Choice, Architecture]:
    """Return a model file as the choice of an external model, and its recognised architecture."""
    tensors = read_tensors(file, checkpoint_key)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(TRIGGER)}
    found = recognise(without(tensors, ignore, str(file)), str(file))
    config = build(MODELS[found.name][0], found.settings, f"{file}: ")
    return Choice(found.name, found.name, config, str(file), checkpoint_key, ignore), found


def _recognised(
    choice: Choice,
    found: Architecture,
    images: Images,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[LoadedModel, Facts]:
    """Read a model whose architecture was recognised, with a given or chosen normalisation."""
    count = found.channels
    info = DataInfo("examined", images.shape, images.classes, (0.0,) * count, (1.0,) * count)
    plain = choice.config.build(info)
    external = read_external_model(choice, plain)
    normalisation = (
        given_normalisation(mean, std, count)
        if mean or std
        else choose_normalisation(plain, external.variables, images.clean or images.suspects, count)
    )
    info = dataclasses.replace(info, mean=normalisation.mean, std=normalisation.std)
    settings = names(f"{key} {value}" for key, value in found.settings.items())
    facts = [
        ("Model", external.text),
        ("Architecture", f"{found.name} ({settings}), by the names and shapes of its tensors"),
        ("Normalisation", normalisation.text),
    ]
    return LoadedModel(choice.config.build(info), external.variables, info), facts
