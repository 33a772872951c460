"""What an examination is given: the model, and clean, suspect and unlabelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config.loading import build
from ..config.stored_model import model_path
from ..config.study import Choice
from ..core.errors import CheckpointError, DataError, names
from ..core.paths import user_path
from ..core.types import DataInfo, Model, Split, Variables
from ..data.arrays import check_split, read_npz
from ..data.image_folder import read_labelled_folder
from ..data.pictures import SUFFIXES, read_picture
from ..interop import read_tensors
from ..interop.architecture import Architecture, recognise
from ..interop.external_model import TRIGGER, read_external_model, without
from ..models import MODELS
from .normalisation import choose_normalisation, given_normalisation

MOST_INPUTS = 10_000
"""The largest number of inputs that are examined at once."""
MOST_CLEAN = 2_500
"""The largest number of clean images that the methods use, for their time."""


class Labelled(NamedTuple):
    """Images with labels, and the names of the classes if the file or folder has them."""

    split: Split
    classes: tuple[str, ...] | None


class Given(NamedTuple):
    """The subjects of an examination, checked against each other.

    `info` describes the images of the model. `clean` are images whose labels are trusted, and
    `suspects` the samples of a training set. `inputs` [N, H, W, C] uint8 are images without labels,
    whose files are called `files`. `facts` are pairs (what, text) for the page.
    """

    model: Model
    variables: Variables
    info: DataInfo
    clean: Split | None
    suspects: Split | None
    inputs: np.ndarray | None
    files: list[str]
    facts: list[tuple[str, str]]


def read_given(
    model: str,
    clean: str | Path | None,
    suspects: str | Path | None,
    inputs: str | Path | None,
    *,
    size: int = 32,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    checkpoint_key: str = "",
    ignore: tuple[str, ...] = (),
) -> Given:
    """Read the model and all images; guess what the files do not say.

    The architecture follows from the names and shapes of the tensors. Without `mean` and `std`, the
    normalisation is that of `choose_normalisation`. Pictures in folders are resized to `size`
    pixels. `checkpoint_key` and `ignore` are as in a study's config.

    Raises `CheckpointError`, `ConfigError` or `DataError` where something cannot be read, or where
    the images do not belong to the model.
    """
    choice, found = _choice(model, checkpoint_key, ignore)
    labelled = {
        part: read_labelled(path, part, size, found)
        for path, part in ((clean, "test"), (suspects, "train"))
        if path is not None
    }
    unlabelled, files = read_inputs(inputs, size, found.channels) if inputs else (None, [])
    arrays = {part: np.asarray(each.split.images) for part, each in labelled.items()}
    if unlabelled is not None:
        arrays["inputs"] = unlabelled
    shape = _one_shape(arrays, size, found)
    info = DataInfo(
        "examined",
        shape,
        _class_names(labelled, found.classes),
        (0.0,) * found.channels,
        (1.0,) * found.channels,
    )
    plain = choice.config.build(info)
    external = read_external_model(choice, plain)
    splits = {part: each.split for part, each in labelled.items()}
    trusted = next(iter(splits.values()), None)
    normalisation = (
        given_normalisation(mean, std, found.channels)
        if mean or std
        else choose_normalisation(plain, external.variables, trusted, found.channels)
    )
    info = dataclasses.replace(info, mean=normalisation.mean, std=normalisation.std)
    settings = names(f"{key} {value}" for key, value in found.settings.items())
    facts = [
        ("Model", external.text),
        ("Architecture", f"{found.name} ({settings}), by the names and shapes of its tensors"),
        ("Normalisation", normalisation.text),
    ]
    counts = {part: len(images) for part, images in arrays.items()}
    facts += [(NAMED[part].capitalize(), f"{count:,}") for part, count in counts.items()]
    if "test" in splits and counts["test"] > MOST_CLEAN:
        splits["test"] = _drawn(splits["test"], MOST_CLEAN)
        facts.append(("Used clean images", f"{MOST_CLEAN:,} of them, drawn at random"))
    return Given(
        choice.config.build(info),
        external.variables,
        info,
        splits.get("test"),
        splits.get("train"),
        unlabelled,
        files,
        facts,
    )


def _choice(
    model: str, checkpoint_key: str, ignore: tuple[str, ...]
) -> tuple[Choice, Architecture]:
    """Return a model file as the choice of an external model, and its recognised architecture."""
    file = model_path(model, "--model")
    if file.is_dir():
        raise CheckpointError(
            f"--model: {file} is a folder; want a file (python -m d3jax.export writes one of a "
            "model in a run folder)"
        )
    tensors = read_tensors(file, checkpoint_key)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(TRIGGER)}
    found = recognise(without(tensors, ignore, str(file)), str(file))
    config = build(MODELS[found.name][0], found.settings, f"{file}: ")
    return Choice(found.name, found.name, config, str(file), checkpoint_key, ignore), found


def read_labelled(path: str | Path, part: str, size: int, model: Architecture) -> Labelled:
    """Read images with labels from an .npz file, or from a folder with one folder for each class.

    An .npz has `images` and `labels`, or those of one `part` of a data set ("train" or "test"),
    such as `test_images` and `test_labels`. Raises `DataError` if it cannot be read, or if a label
    is not a class of the model.
    """
    place = user_path(path)
    if place.is_dir():
        images, labels, classes = read_labelled_folder(place, size, model.channels)
        if len(classes) != model.classes:
            raise DataError(
                f"{place}: has {len(classes)} folders, and the model has {model.classes} classes"
            )
        return Labelled(
            check_split(str(place), part, images, labels, model.classes), tuple(classes)
        )
    keys = ("images", "labels", f"{part}_images", f"{part}_labels", "class_names")
    arrays = read_npz(place, (), keys)
    prefix = "" if "images" in arrays else f"{part}_"
    missing = [f"{prefix}{name}" for name in keys[:2] if f"{prefix}{name}" not in arrays]
    if missing:
        raise DataError(f"{place}: has no {names(missing)}; want images and labels")
    images = _with_channels(arrays[f"{prefix}images"])
    split = check_split(str(place), part, images, arrays[f"{prefix}labels"], model.classes)
    named = arrays.get("class_names")
    return Labelled(split, None if named is None else tuple(map(str, named)))


def read_inputs(path: str | Path, size: int, channels: int) -> tuple[np.ndarray, list[str]]:
    """Read images without labels [N, H, W, C] uint8 from a folder or an .npz, with their names.

    A folder has pictures, and an .npz the array `images`. Raises `DataError` if there are none, or
    more than `MOST_INPUTS`.
    """
    place = user_path(path)
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
        _check_count(place, len(files))
        images = np.stack([read_picture(file, size, size, channels) for file in files])
        return images, [file.name for file in files]
    images = _with_channels(read_npz(place, ("images",))["images"])
    _check_count(place, len(images))
    check_split(str(place), "input", images, np.zeros(len(images), int), 1)
    return images, list(map(str, range(len(images))))


def _drawn(split: Split, count: int) -> Split:
    """Return `count` images with labels of a split, drawn at random."""
    rows = np.sort(np.random.default_rng(0).permutation(len(split.labels))[:count])
    return Split(np.asarray(split.images)[rows], np.asarray(split.labels)[rows])


def _check_count(place: Path, count: int) -> None:
    if not 0 < count <= MOST_INPUTS:
        raise DataError(f"{place}: has {count} pictures, want 1 to {MOST_INPUTS}")


def _with_channels(images: np.ndarray) -> np.ndarray:
    return images[..., None] if images.ndim == 3 else images


def _one_shape(
    arrays: Mapping[str, np.ndarray], size: int, model: Architecture
) -> tuple[int, int, int]:
    """Return the shape of an image; raise `DataError` where images differ or do not fit."""
    shapes = {part: images.shape[1:] for part, images in arrays.items()}
    for part, shape in shapes.items():
        if shape != next(iter(shapes.values())) or shape[-1] != model.channels:
            raise DataError(
                f"the {NAMED[part]} are of {'×'.join(map(str, shape))}; want images of one size, "
                f"with the model's number of channels: {model.channels}"
            )
    height, width, channels = next(iter(shapes.values()), (size, size, model.channels))
    return height, width, channels


NAMED = {"test": "clean images", "train": "suspect samples", "inputs": "inputs"}
"""The names of the given images in messages."""


def _class_names(labelled: Mapping[str, Labelled], classes: int) -> tuple[str, ...]:
    """Return the names of the classes; raise `DataError` where two sources disagree."""
    found = {each.classes for each in labelled.values() if each.classes}
    if len(found) > 1:
        first, second = sorted(found)
        raise DataError(
            f"clean and suspect images have other classes: {names(first)} and {names(second)}"
        )
    return next(iter(found), tuple(map(str, range(classes))))
