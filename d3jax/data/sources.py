"""Data sets that need nothing but what is on this machine: digits, synthetic images, .npz files, image folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from ..base import Dataset, Split
from ..config import check_fields, option
from ..errors import ConfigError, DataError
from .arrays import Arrays, from_arrays, read_npz
from .reserved import draw_stratified


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
    """scikit-learn's handwritten digits: 1,797 real 8×8 images in 10 classes, enlarged; 1,438 to train, 359 to test."""

    size: int = option(16, "height and width in pixels, a multiple of 8", low=8)
    resize: Literal["nearest", "bilinear"] = option("nearest", "how the 8×8 images are enlarged")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size % 8:
            raise ConfigError(f"size: {self.size} is not a multiple of 8")


def digits(config: DigitsConfig) -> Dataset:
    """The digits, grey [size, size, 1], split once and for all (seeded, 20 % of each class to test)."""
    from PIL import Image
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = np.rint(raw.images / 16 * 255).astype(np.uint8)
    resample = Image.Resampling[config.resize.upper()]
    images = np.stack([Image.fromarray(image).resize((config.size, config.size), resample) for image in small])[..., None]
    classes = [str(name) for name in raw.target_names]
    train, test = _split(images, raw.target, len(classes), fraction=0.2, seed=0)
    return from_arrays(train, test, name="digits", classes=classes, crop=config.size // 16)


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Generated images of any size: a smooth random prototype per class, shifted a little, plus noise."""

    size: int = option(16, "height and width in pixels", low=4)
    channels: int = option(3, "channels", low=1)
    classes: int = option(10, "classes", low=2)
    train: int = option(2000, "training images", low=1)
    test: int = option(500, "test images", low=1)
    noise: float = option(0.1, "standard deviation of the (uniform) noise, in [0, 1] units", low=0)
    shift: int = option(1, "prototypes move by up to so many pixels each way", low=0)
    seed: int = option(0, "the same seed gives the same images", low=0)

    def __post_init__(self) -> None:
        check_fields(self)


def synthetic(config: SyntheticConfig) -> Dataset:
    """Images [size, size, channels], classes balanced to within one; 60,000 of 32×32×3 take a few seconds."""
    wide = config.size + 2 * config.shift
    grid = np.random.default_rng([config.seed, 0]).random((config.classes, 4, 4, config.channels), np.float32)
    # Bilinear interpolation of a 4×4 grid is linear in the grid: [wide, 4] weights for each axis.
    weights = np.stack([np.interp(np.linspace(0, 3, wide), np.arange(4), unit) for unit in np.eye(4)], axis=1)
    prototypes = np.einsum("hi,wj,kijc->khwc", weights, weights, grid).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(prototypes, (config.size, config.size), axis=(1, 2))

    def draw(count: int, stream: int) -> Arrays:
        rng = np.random.default_rng([config.seed, stream])
        labels = rng.permutation(np.arange(count) % config.classes)
        images = np.empty((count, config.size, config.size, config.channels), np.uint8)
        for start in range(0, count, 1000):  # a float32 copy of everything would be four times the data
            block = labels[start : start + 1000]
            down, right = rng.integers(0, 2 * config.shift + 1, (2, len(block)))
            clean = np.moveaxis(windows[block, down, right], 1, -1)
            noise = rng.integers(0, 256, clean.shape, np.uint8) - np.float32(127.5)  # an eighth of the cost of normal noise
            noisy = 255 * clean + 255 * config.noise / 73.9 * noise  # 73.9: the standard deviation of 0..255
            images[start : start + 1000] = np.rint(np.clip(noisy, 0, 255))
        return images, labels

    classes = [str(label) for label in range(config.classes)]
    return from_arrays(draw(config.train, 1), draw(config.test, 2), name="synthetic", classes=classes, crop=config.shift)


@dataclasses.dataclass(frozen=True)
class NpzConfig:
    """A NumPy .npz file with train_images, train_labels, test_images, test_labels: uint8 [N, H, W(, C)], integers [N]."""

    path: str = option(dataclasses.MISSING, "the file; a relative path is looked up from where the command is given")
    class_names: tuple[str, ...] | None = option(None, "names of the classes (null: 0, 1, … up to the largest label)")
    mean: tuple[float, ...] | None = option(None, "per channel, in [0, 1] (null: measured on the training images)", low=0, high=1)
    std: tuple[float, ...] | None = option(None, "per channel, in [0, 1] (null: measured)", above=0, high=1)
    crop: int = option(0, "padding in pixels of the random crop that suits the images (0: none)", low=0)
    flip: bool = option(False, "a mirrored image keeps its class")
    limit_train: int = option(0, "use the first so many training images (0: all)", low=0)
    limit_test: int = option(0, "use the first so many test images (0: all)", low=0)

    def __post_init__(self) -> None:
        check_fields(self)


def npz(config: NpzConfig) -> Dataset:
    """The data set in an .npz file, which is checked and measured whole before the limits cut it.

    Raises `DataError` when the file cannot be read (pickled arrays never are) or is no data set.
    """
    path = Path(config.path).expanduser()
    arrays = read_npz(path)
    for key in ("train_images", "test_images"):
        if arrays[key].ndim == 3:
            arrays[key] = arrays[key][..., None]
    dataset = from_arrays(
        (arrays["train_images"], arrays["train_labels"]),
        (arrays["test_images"], arrays["test_labels"]),
        name=path.stem,
        source=path,
        classes=config.class_names,
        mean=config.mean,
        std=config.std,
        crop=config.crop,
        flip=config.flip,
    )
    return dataset._replace(train=_first(dataset.train, config.limit_train), test=_first(dataset.test, config.limit_test))


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Image files as path/train/<class>/* and path/test/<class>/*, or as path/<class>/*, split by the seed."""

    path: str = option(dataclasses.MISSING, "the folder; a relative path is looked up from where the command is given")
    size: int = option(32, "images are resized to size × size pixels", low=1)
    channels: Literal[1, 3] = option(3, "1: grey, 3: RGB")
    test_fraction: float = option(0.2, "share of each class to test, where there is no train/ and test/", above=0, high=0.9)
    seed: int = option(0, "of that split", low=0)
    crop: int = option(0, "padding in pixels of the random crop that suits the images (0: none)", low=0)
    flip: bool = option(False, "a mirrored image keeps its class")

    def __post_init__(self) -> None:
        check_fields(self)


def folder(config: FolderConfig) -> Dataset:
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
        train, test = _split(images, labels, len(classes), fraction=config.test_fraction, seed=config.seed)
        for name, count in zip(classes, np.bincount(train[1], minlength=len(classes)), strict=True):
            if not count:
                raise DataError(f"{root / name}: no image is left to train on; want more, or a smaller test_fraction")
    return from_arrays(train, test, name=root.name, source=root, classes=classes, crop=config.crop, flip=config.flip)


def _first(split: Split, limit: int) -> Split:
    return Split(split.images[:limit], split.labels[:limit]) if limit else split


_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def _class_names(path: Path) -> list[str]:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder, want one with a folder of images per class")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{path}: has no folders inside, want one per class")
    return names


def _read_classes(path: Path, classes: list[str], config: FolderConfig) -> Arrays:
    """Images [N, size, size, channels] and labels [N] of the class folders in `path`, in the order of their names."""
    images, labels = [], []
    for name in _class_names(path):
        if name not in classes:
            raise DataError(f"{path / name}: not a training class; those are {', '.join(classes)}")
        files = sorted(file for file in (path / name).iterdir() if file.suffix.lower() in _SUFFIXES and file.name[0] != ".")
        if not files:
            raise DataError(f"{path / name}: has no images, want files like {', '.join(sorted(_SUFFIXES))}")
        images += [_read_image(file, config) for file in files]
        labels += [classes.index(name)] * len(files)
    return np.stack(images), np.array(labels)


def _read_image(file: Path, config: FolderConfig) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":  # 16 and 32 bits a pixel: Pillow's conversion would clip it to white
                raise ValueError(f"has mode {image.mode}, want 8 bits a channel")
            plain = image.convert("L" if config.channels == 1 else "RGB")
            pixels = np.asarray(plain.resize((config.size, config.size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow says SyntaxError for a broken PNG
        raise DataError(f"{file}: not a readable image: {error}") from error
    return pixels.reshape(config.size, config.size, config.channels)


def _split(images: np.ndarray, labels: np.ndarray, num_classes: int, *, fraction: float, seed: int) -> tuple[Arrays, Arrays]:
    """Draws `fraction` of each class as the test set; the rest, in the old order, is the training set."""
    test = np.zeros(len(labels), bool)
    test[draw_stratified(labels, round(fraction * len(labels)), num_classes, np.random.default_rng(seed))] = True
    return (images[~test], labels[~test]), (images[test], labels[test])
