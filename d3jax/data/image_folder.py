"""Data sets as folders of image files."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import DataError, names
from ..core.paths import user_path
from ..core.types import Dataset
from ..runtime.main_memory import check_fits
from .arrays import few, from_arrays
from .pictures import SUFFIXES, read_picture
from .reserved import split_by_class


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Image files as path/train/<class>/* and path/test/<class>/* (or path/val/), as path/<class>/*, split by the seed, or as Tiny-ImageNet is published."""

    path: str = option(
        dataclasses.MISSING,
        "the folder; a relative path is looked up from where the command is given",
    )
    size: int = option(32, "images are resized to size × size pixels", low=1)
    channels: Literal[1, 3] = option(3, "1: grey, 3: RGB")
    test_fraction: float = option(
        0.2, "share of each class to test, where there is no train/ and test/", above=0, high=0.9
    )
    seed: int = option(0, "of that split", low=0)
    crop: int = option(
        0, "padding in pixels of the random crop that suits the images (0: none)", low=0
    )
    flip: bool = option(False, "a mirrored image keeps its class")

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> Dataset:
        """Return the data set, read or made."""
        return make_folder(self)


def make_folder(config: FolderConfig) -> Dataset:
    """The images [size, size, channels] under a folder.

    Classes are the folders' names in the order of the alphabet, or of the numbers where all are
    numbers. Files with other endings are left out, and a warning counts them. Raises `DataError` for
    a missing or empty folder, a test class without training images and an unreadable image.
    """
    root = user_path(config.path)
    parts = _parts(root)
    classes = _class_names(root / parts[0])
    train = _read_files(_files_by_class(root / parts[0], classes), config)
    if len(parts) == 1:
        train, test = split_by_class(
            *train, len(classes), fraction=config.test_fraction, seed=config.seed
        )
        for name, count in zip(classes, np.bincount(train[1], minlength=len(classes)), strict=True):
            if not count:
                raise DataError(
                    f"{root / name}: no image is left to train on; want more, or a smaller test_fraction"
                )
    elif (root / parts[1] / ANNOTATIONS).is_file():
        test = _read_files(_annotated(root / parts[1], classes), config)
    else:
        test = _read_files(_files_by_class(root / parts[1], classes), config)
    return from_arrays(
        train,
        test,
        name=root.name,
        source=root,
        classes=classes,
        crop=config.crop,
        flip=config.flip,
    )


ANNOTATIONS = "val_annotations.txt"
"""The labels of Tiny-ImageNet's test images: lines of a file's name, its class and more, between tabs."""


def _parts(root: Path) -> tuple[str, ...]:
    """The folders of training and of test images, or the one of all: "." """
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    if (root / "val" / ANNOTATIONS).is_file():  # Tiny-ImageNet's test/ has no labels
        tests = ["val"]
    if (root / "train").is_dir() != bool(tests):
        raise DataError(f"{root}: has only one of train/ and test/ (or val/), want both or neither")
    return ("train", tests[0]) if tests else (".",)


def _class_names(path: Path) -> list[str]:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder, want one with a folder of images per class")
    found = [entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."]
    if not found:
        raise DataError(f"{path}: has no folders inside, want one per class")
    for name in found:
        if not name.isprintable():  # nor is what is no UTF-8
            raise DataError(
                f"{path}: the folder {name!r} has a name that cannot be shown; rename it"
            )
    if all(name.isdecimal() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def _files_by_class(path: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The pictures of the class folders in `path` with their labels, in the order of their names."""
    pairs, left_out = [], Counter()
    for name in _class_names(path):
        if name not in classes:
            raise DataError(f"{path / name}: not a training class; those are {few(classes)}")
        folder = path / name
        inner = folder / "images"  # as Tiny-ImageNet has them
        entries = sorted((inner if inner.is_dir() else folder).iterdir())
        entries = [entry for entry in entries if entry.name[0] != "."]
        files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
        left_out.update(entry.suffix.lower() or "no ending" for entry in set(entries) - set(files))
        if not files:
            raise DataError(f"{folder}: has no images, want files like {names(sorted(SUFFIXES))}")
        pairs += [(file, classes.index(name)) for file in files]
    if left_out:
        counts = few(f"{count} with {suffix}" for suffix, count in sorted(left_out.items()))
        warnings.warn(
            f"{path}: left out {counts}; read are {names(sorted(SUFFIXES))}", stacklevel=2
        )
    return pairs


def _annotated(path: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The pictures in path/images with the labels that the file of annotations gives them."""
    source, pairs = path / ANNOTATIONS, []
    try:
        lines = source.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in classes:
            raise DataError(
                f"{source}:{number}: {name!r} is not a training class; those are {few(classes)}"
            )
        pairs.append((path / "images" / file, classes.index(name)))
    if not pairs:
        raise DataError(f"{source}: names no image")
    return pairs


def _read_files(
    pairs: list[tuple[Path, int]], config: FolderConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, size, size, channels] and labels [N]."""
    side = config.size
    check_fits(
        2 * len(pairs) * side**2 * config.channels,
        f"size: {len(pairs)} images of {side}×{side}×{config.channels}",
    )
    images = [read_picture(file, side, side, config.channels) for file, _ in pairs]
    return np.stack(images), np.array([label for _, label in pairs])
