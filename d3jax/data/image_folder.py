"""Data sets as folders of image files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import DataError
from ..core.types import Dataset
from .arrays import from_arrays
from .reserved import split_by_class


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Image files as path/train/<class>/* and path/test/<class>/*, or as path/<class>/*, split by the seed."""

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
    """The images [size, size, channels] under a folder; classes are the folders' names, sorted.

    Raises `DataError` for a missing or empty folder, a test class without training images and an unreadable image.
    """
    root = Path(config.path).expanduser()
    ready = [(root / part).is_dir() for part in ("train", "test")]
    if any(ready):
        if not all(ready):
            raise DataError(f"{root}: has only one of train/ and test/, want both or neither")
        classes = _class_names(root / "train")
        train, test = (_read_classes(root / part, classes, config) for part in ("train", "test"))
    else:
        classes = _class_names(root)
        images, labels = _read_classes(root, classes, config)
        train, test = split_by_class(
            images, labels, len(classes), fraction=config.test_fraction, seed=config.seed
        )
        for name, count in zip(classes, np.bincount(train[1], minlength=len(classes)), strict=True):
            if not count:
                raise DataError(
                    f"{root / name}: no image is left to train on; want more, or a smaller test_fraction"
                )
    return from_arrays(
        train,
        test,
        name=root.name,
        source=root,
        classes=classes,
        crop=config.crop,
        flip=config.flip,
    )


_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def _class_names(path: Path) -> list[str]:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder, want one with a folder of images per class")
    names = sorted(
        entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise DataError(f"{path}: has no folders inside, want one per class")
    return names


def _read_classes(
    path: Path, classes: list[str], config: FolderConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, size, size, channels] and labels [N] of the class folders in `path`, in the order of their names."""
    images, labels = [], []
    for name in _class_names(path):
        if name not in classes:
            raise DataError(f"{path / name}: not a training class; those are {', '.join(classes)}")
        files = sorted(
            file
            for file in (path / name).iterdir()
            if file.suffix.lower() in _SUFFIXES and file.name[0] != "."
        )
        if not files:
            raise DataError(
                f"{path / name}: has no images, want files like {', '.join(sorted(_SUFFIXES))}"
            )
        images += [_read_image(file, config) for file in files]
        labels += [classes.index(name)] * len(files)
    return np.stack(images), np.array(labels)


def _read_image(file: Path, config: FolderConfig) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if (
                image.mode[0] in "IF"
            ):  # 16 and 32 bits a pixel: Pillow's conversion would clip it to white
                raise ValueError(f"has mode {image.mode}, want 8 bits a channel")
            plain = image.convert("L" if config.channels == 1 else "RGB")
            pixels = np.asarray(plain.resize((config.size, config.size), Image.Resampling.BILINEAR))
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # Pillow says SyntaxError for a broken PNG
        raise DataError(f"{file}: not a readable image: {error}") from error
    return pixels.reshape(config.size, config.size, config.channels)
