"""The reader of data sets of image files in one folder per class."""

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
    """Settings of a data set of image files in one folder per class.

    Three layouts are read: path/train/<class>/* with path/test/<class>/* (or path/val/<class>/*);
    path/<class>/*, which the seed splits; and Tiny-ImageNet as it is published.
    """

    path: str = option(
        dataclasses.MISSING,
        "the folder; a relative path starts at the current directory",
    )
    size: int = option(32, "images are resized to size × size pixels", low=1)
    channels: Literal[1, 3] = option(3, "1: grey, 3: RGB")
    test_fraction: float = option(
        0.2,
        "share of each class in the test set, if there is no train/ and test/",
        above=0,
        high=0.9,
    )
    seed: int = option(0, "seed of the split by test_fraction", low=0)
    mean: tuple[float, ...] | None = option(
        None, "mean per channel, in [0, 1] (null: measured on the training images)", low=0, high=1
    )
    std: tuple[float, ...] | None = option(
        None, "standard deviation per channel, in [0, 1] (null: measured)", above=0, high=1
    )
    crop: int = option(0, "padding in pixels of the random crop in training (0: no crop)", low=0)
    flip: bool = option(
        False, "whether a mirrored image keeps its class, so that training may flip it"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> Dataset:
        """Read the data set from the folder of pictures that these settings name."""
        return make_folder(self)


def make_folder(config: FolderConfig) -> Dataset:
    """Read the image files under a folder into a `Dataset` of images [size, size, channels].

    Classes are the names of the folders, sorted alphabetically, or numerically where all are
    numbers. Files with other endings than `SUFFIXES` are left out, and a warning counts them.
    Raises `DataError` for a missing or empty folder, a test class without training images and an
    unreadable image.
    """
    root = user_path(config.path)
    parts = _parts(root)
    classes, given = _class_names(root / parts[0]), (config.size, config.channels)
    train = _read_files(_files_by_class(root / parts[0], classes), *given)
    if len(parts) == 1:
        train, test = split_by_class(
            *train, len(classes), fraction=config.test_fraction, seed=config.seed
        )
        for name, count in zip(classes, np.bincount(train[1], minlength=len(classes)), strict=True):
            if not count:
                raise DataError(
                    f"{root / name}: no image is left to train on; "
                    "want more, or a smaller test_fraction"
                )
    elif (root / parts[1] / ANNOTATIONS).is_file():
        test = _read_files(_annotated(root / parts[1], classes), *given)
    else:
        test = _read_files(_files_by_class(root / parts[1], classes), *given)
        if absent := sorted(set(range(len(classes))) - set(test[1].tolist())):
            warnings.warn(
                f"{root / parts[1]}: has no images of {few(classes[label] for label in absent)}",
                stacklevel=2,
            )
    return from_arrays(
        train,
        test,
        name=root.name,
        source=root,
        classes=classes,
        mean=config.mean,
        std=config.std,
        crop=config.crop,
        flip=config.flip,
    )


ANNOTATIONS = "val_annotations.txt"
"""Name of the file with the labels of Tiny-ImageNet's validation images, which are the test set.

Each of its lines has a file's name, its class and more, separated by tabs.
"""


def _parts(root: Path) -> tuple[str, ...]:
    """Return the names of the train and test folders in `root`, or (".",) if it has none.

    Raises `DataError` where only one of the two exists.
    """
    if root.is_dir():
        for name in sorted(entry.name for entry in root.iterdir()):
            if name.lower() in ("train", "test", "val") and not name.islower():
                raise DataError(f"{root / name}: want a name in lower case, {name.lower()}/")
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    if (root / "val" / ANNOTATIONS).is_file():  # Tiny-ImageNet's test/ has no labels
        tests = ["val"]
    if (root / "train").is_dir() != bool(tests):
        raise DataError(f"{root}: has only one of train/ and test/ (or val/), want both or neither")
    if len(tests) > 1:
        warnings.warn(f"{root}: test/ is used, val/ is left out", stacklevel=2)
    return ("train", tests[0]) if tests else (".",)


def _class_names(path: Path) -> list[str]:
    """Return the names of the class folders in `path`, sorted, as numbers where all are numbers."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder, want one with a folder of images per class")
    folders = [entry.name for entry in path.iterdir() if entry.is_dir()]
    found = [name for name in folders if name[0] != "." and name != "__MACOSX"]
    if not found:
        raise DataError(f"{path}: has no folders inside, want one per class")
    for name in found:
        if not name.isprintable():  # this refuses names that are not UTF-8, too
            raise DataError(
                f"{path}: the folder {name!r} has a name that cannot be shown; rename it"
            )
    if all(name.isdecimal() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def _files_by_class(path: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """List the pictures in the class folders of `path` with their labels, sorted by name.

    A warning counts the files with other endings.
    """
    pairs, left_out = [], Counter()
    for name in _class_names(path):
        if name not in classes:
            raise DataError(f"{path / name}: not a training class; those are {few(classes)}")
        folder = path / name
        inner = folder / "images"  # Tiny-ImageNet's layout
        entries = sorted((inner if inner.is_dir() else folder).iterdir())
        entries = [entry for entry in entries if entry.name[0] != "."]
        files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
        left_out.update(map(_kind, set(entries) - set(files)))
        if not files:
            inside = [entry.name for entry in entries if entry.is_dir()]
            hint = f"; it holds folders ({few(inside)}): is it the path to give?" if inside else ""
            raise DataError(
                f"{folder}: has no images, want files like {names(sorted(SUFFIXES))}{hint}"
            )
        pairs += [(file, classes.index(name)) for file in files]
    if left_out:
        counts = few(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        warnings.warn(
            f"{path}: left out {counts}; known endings are {names(sorted(SUFFIXES))}", stacklevel=2
        )
    return pairs


def _kind(entry: Path) -> str:
    """Return how a warning describes a file or folder that is no picture, such as "with .txt"."""
    if entry.is_dir():
        return "folders inside of class folders"
    return f"with {entry.suffix.lower()}" if entry.suffix else "with no ending"


def _annotated(path: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """List Tiny-ImageNet's validation pictures with the labels of its annotation file."""
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


def read_labelled_folder(
    root: Path, size: int, channels: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the pictures of a folder with one folder for each class.

    Returns images [N, size, size, channels] uint8, labels [N] and the names of the classes. Errors
    and warnings are those of `make_folder`.
    """
    classes = _class_names(root)
    images, labels = _read_files(_files_by_class(root, classes), size, channels)
    return images, labels, classes


def _read_files(
    pairs: list[tuple[Path, int]], side: int, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read picture files with labels into images [N, side, side, channels] uint8 and labels [N]."""
    check_fits(
        2 * len(pairs) * side**2 * channels,
        f"size: {len(pairs)} images of {side}×{side}×{channels}",
    )
    images = [read_picture(file, side, side, channels) for file, _ in pairs]
    return np.stack(images), np.array([label for _, label in pairs])
