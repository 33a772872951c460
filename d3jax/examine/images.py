"""The images that an examination is given: clean, suspect and unlabelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.errors import DataError, names
from ..core.paths import user_path
from ..core.types import Split
from ..data.arrays import check_split, read_npz
from ..data.image_folder import read_labelled_folder
from ..data.pictures import SUFFIXES, read_picture

MOST_INPUTS = 10_000
"""The largest number of inputs that are examined at once."""
MOST_CLEAN = 2_500
"""The largest number of clean images that the methods use, for their time."""


class Wanted(NamedTuple):
    """What a model takes: the number of `channels`, and of `classes`.

    Pictures in folders are resized to `size` × `size` pixels.
    """

    channels: int
    classes: int
    size: int


class Labelled(NamedTuple):
    """Images with labels, and the names of the classes if the file or folder has them."""

    split: Split
    classes: tuple[str, ...] | None


class Images(NamedTuple):
    """All images of an examination, of one `shape` (H, W, C) and with one list of `classes`.

    `clean` are images whose labels are trusted, and `suspects` the samples of a training set.
    `inputs` [N, H, W, C] uint8 are images without labels, whose files are called `files`. `facts`
    are pairs (what, text) on their numbers.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    clean: Split | None
    suspects: Split | None
    inputs: np.ndarray | None
    files: list[str]
    facts: list[tuple[str, str]]


def read_images(
    clean: str | Path | None,
    suspects: str | Path | None,
    inputs: str | Path | None,
    wanted: Wanted,
) -> Images:
    """Read all images that were given. Of many clean images, `MOST_CLEAN` are drawn at random.

    Raises `DataError` where something cannot be read, or where the images do not belong together or
    to the model.
    """
    labelled = {
        part: read_labelled(path, part, wanted)
        for path, part in ((clean, "test"), (suspects, "train"))
        if path is not None
    }
    unlabelled, files = read_inputs(inputs, wanted) if inputs else (None, [])
    arrays = {part: np.asarray(each.split.images) for part, each in labelled.items()}
    if unlabelled is not None:
        arrays["inputs"] = unlabelled
    counts = {part: len(images) for part, images in arrays.items()}
    facts = [(NAMED[part].capitalize(), f"{count:,}") for part, count in counts.items()]
    facts += [
        (NAMED[part].capitalize(), f"not given ({flag})")
        for part, flag in (("test", "--data"), ("train", "--samples"), ("inputs", "--inputs"))
        if part not in counts
    ]
    splits = {part: each.split for part, each in labelled.items()}
    if counts.get("test", 0) > MOST_CLEAN:
        splits["test"] = _drawn(splits["test"], MOST_CLEAN)
        facts.append(("Used clean images", f"{MOST_CLEAN:,} of them, drawn at random"))
    return Images(
        _one_shape(arrays, wanted),
        _class_names(labelled, wanted.classes),
        splits.get("test"),
        splits.get("train"),
        unlabelled,
        files,
        facts,
    )


def read_labelled(path: str | Path, part: str, wanted: Wanted) -> Labelled:
    """Read images with labels from an .npz file, or from a folder with one folder for each class.

    An .npz has `images` and `labels`, or those of one `part` of a data set ("train" or "test"),
    such as `test_images` and `test_labels`. Raises `DataError` if it cannot be read, or if a label
    is not a class of the model.
    """
    place = user_path(path)
    if place.is_dir():
        images, labels, classes = read_labelled_folder(place, wanted.size, wanted.channels)
        if len(classes) != wanted.classes:
            raise DataError(
                f"{place}: has {len(classes)} folders, and the model has {wanted.classes} classes"
            )
        return Labelled(
            check_split(str(place), part, images, labels, wanted.classes), tuple(classes)
        )
    keys = ("images", "labels", f"{part}_images", f"{part}_labels", "class_names")
    arrays = read_npz(place, (), keys)
    prefix = "" if "images" in arrays else f"{part}_"
    missing = [f"{prefix}{name}" for name in keys[:2] if f"{prefix}{name}" not in arrays]
    if missing:
        raise DataError(f"{place}: has no {names(missing)}; want images and labels")
    images = _with_channels(arrays[f"{prefix}images"])
    split = check_split(str(place), part, images, arrays[f"{prefix}labels"], wanted.classes)
    named = arrays.get("class_names")
    return Labelled(split, None if named is None else tuple(map(str, named)))


def read_inputs(path: str | Path, wanted: Wanted) -> tuple[np.ndarray, list[str]]:
    """Read images without labels [N, H, W, C] uint8 from a folder or an .npz, with their names.

    A folder has pictures, and an .npz the array `images`. Raises `DataError` if there are none, or
    more than `MOST_INPUTS`.
    """
    place = user_path(path)
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
        _check_count(place, len(files))
        images = np.stack(
            [read_picture(file, wanted.size, wanted.size, wanted.channels) for file in files]
        )
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


def _one_shape(arrays: Mapping[str, np.ndarray], wanted: Wanted) -> tuple[int, int, int]:
    """Return the shape of an image; raise `DataError` where images differ or do not fit."""
    shapes = {part: images.shape[1:] for part, images in arrays.items()}
    for part, shape in shapes.items():
        if shape != next(iter(shapes.values())) or shape[-1] != wanted.channels:
            raise DataError(
                f"the {NAMED[part]} are of {'×'.join(map(str, shape))}; want images of one size, "
                f"with the model's number of channels: {wanted.channels}"
            )
    height, width, channels = next(
        iter(shapes.values()), (wanted.size, wanted.size, wanted.channels)
    )
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
