"""The constructor of a checked `Dataset` from arrays, and the reader of .npz files.

Every source of data ends here, so every data set has passed the same checks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import D3JaxError, DataError, names
from ..core.types import Array, DataInfo, Dataset, Split
from ..runtime.main_memory import check_fits

Arrays = tuple[Array, Array]
"""Images and labels that are not checked yet."""

Labels = dict[int, int] | Literal["from_zero", "from_one"]
"""The rule that gives the class of a label.

The class is the label itself ("from_zero") or the label minus one ("from_one"), or a mapping gives
it.
"""

SHOWN = 8
"""Largest number of labels or names in a message."""

LONGEST = 200
"""Largest number of characters in the name of a class."""

NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def from_arrays(
    train: Arrays,
    test: Arrays,
    *,
    name: str = "arrays",
    source: str | Path | None = None,
    classes: Sequence[str] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    crop: int = 0,
    flip: bool = False,
    labels: Labels = "from_zero",
) -> Dataset:
    """Return a checked `Dataset` of two pairs (images [N, H, W, C] uint8, labels [N] integer).

    `labels` says which class a label means. Without `classes`, they are called "0", "1", … up to
    the largest training label. `mean` and `std` are per channel, in [0, 1] units; without them the
    training images are measured. Errors name the `source` (default: `name`). `crop` and `flip` are
    as in `DataInfo`. Raises `DataError` when the arrays are not a valid data set: see `check_split`
    and `check_classes`.
    """
    source = str(source or name)
    train, test = (
        (images, as_classes(source, part, given, labels))
        for part, (images, given) in (("train", train), ("test", test))
    )
    # The labels count unnamed classes. A label above the number of images is a mistake.
    named = classes is not None
    train = check_split(
        source, "train", *train, len(classes) if named else np.size(train[1]), named
    )
    classes = _class_names(source, classes, train.labels)
    test = check_split(source, "test", *test, len(classes), named)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{source}: test images are {_shape(test.images[0])}, "
            f"want {_shape(train.images[0])} as in training"
        )
    if mean is None or std is None:
        measured = measure(train.images)
        mean, std = mean or measured[0], std or measured[1]
    height, width, channels = train.images.shape[1:]
    shape = (height, width, channels)
    info = DataInfo(name, shape, classes, tuple(mean), tuple(std), crop, flip)
    _check_info(source, info)
    return Dataset(train, test, info)


def _class_names(source: str, names: Sequence[str] | None, labels: Array) -> tuple[str, ...]:
    """Return the checked names of the classes: `names`, or "0", "1", … up to the largest label."""
    if names is None:
        names = [str(label) for label in range(int(labels.max()) + 1)]
    for given in names:
        if not given.isprintable() or not 0 < len(given) <= LONGEST:
            raise DataError(
                f"{source}: a class is called {given[:40]!r}: "
                f"want 1 to {LONGEST} letters that can be shown"
            )
    check_classes(source, labels, names)
    if len(names) < 2:
        raise DataError(f"{source}: only {len(names)} class, want at least 2")
    return tuple(names)


def _check_info(source: str, info: DataInfo) -> None:
    """Raise `DataError` where crop, mean or deviation do not fit the shape of the images."""
    height, width, channels = info.shape
    if info.crop >= min(height, width):
        raise DataError(
            f"{source}: crop: {info.crop} pixels are no padding for images of {height}×{width}, "
            f"want less than {min(height, width)}"
        )
    for field, values in (("mean", info.mean), ("std", info.std)):
        if len(values) != channels:
            raise DataError(
                f"{source}: {field} {list(values)} has {len(values)} values, "
                f"want {channels}, one per channel"
            )


def as_classes(source: str, part: str, labels: Array, rule: Labels) -> np.ndarray:
    """Convert the labels [N] of a data set to class numbers [N] by the user's rule, `Labels`.

    Labels that are not integers are returned as they are: `check_split` refuses them. Raises
    `DataError` where a mapping lacks one of the labels, or "from_one" meets a label below 1.
    """
    labels = np.asarray(labels)
    if rule == "from_zero" or not np.issubdtype(labels.dtype, np.integer):
        return labels
    if rule == "from_one":
        if labels.size and labels.min() < 1:
            raise DataError(
                f"{source}: {part}_labels has {labels.min()}, want 1 or more with labels: from_one"
            )
        return labels.astype(np.int64) - 1
    there = np.unique(labels)
    if missing := [label for label in there.tolist() if label not in rule]:
        raise DataError(
            f"{source}: {part}_labels has {few(missing)}, "
            f"which the mapping `labels` does not have; it has {few(rule)}"
        )
    classes = np.array([rule[label] for label in there.tolist()])
    return classes[np.searchsorted(there, labels)]


def check_classes(source: str, labels: Array, classes: Sequence[str]) -> None:
    """Raise `DataError` if a class of a data set has no training image."""
    counts = np.bincount(np.asarray(labels), minlength=len(classes))
    empty = np.flatnonzero(counts == 0).tolist()
    if not empty:
        return
    unnamed = list(classes) == list(map(str, range(len(classes))))
    hint = "; a mapping says what labels mean, such as labels: {3: 0, 7: 1}" if unnamed else ""
    if empty == [0]:
        hint = "; where labels begin at 1 say labels: from_one"
    missing = few(label if unnamed else f"{label} ({classes[label]})" for label in empty)
    there = few(np.flatnonzero(counts))
    raise DataError(
        f"{source}: no training image is of class {missing}; the labels there are {there}{hint}"
    )


def check_split(
    source: str, part: str, images: Array, labels: Array, num_classes: int, named: bool = False
) -> Split:
    """Return images and labels as a `Split`; raise `DataError` if they are not valid data.

    The split has images [N, H, W, C] uint8 and labels [N] int32 within 0..num_classes-1; N > 0.
    Raises `DataError` otherwise. Its message is one line that names the `source`, the offending
    array of the `part` ("train" or "test"), and what is wanted.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    where = f"{source}: {part}_"
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"{where}images is {images.dtype} {_shape(images)}, want uint8 [N, H, W, C]"
        )
    if images.size == 0:
        raise DataError(f"{where}images is empty, {_shape(images)}, want at least one image")
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise DataError(
            f"{where}images is {_shape(images)}, which looks like [N, C, H, W], want [N, H, W, C]"
        )
    low, high = int(images.min()), int(images.max())
    if high <= 1:
        raise DataError(
            f"{where}images has only the levels {low} to {high}, as floats in [0, 1] have after a "
            "cast to uint8; want levels from 0 to 255 (multiply by 255 before the cast)"
        )
    if low == high:
        raise DataError(f"{where}images is {low} everywhere, want images that differ")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        hint = ", such as labels.astype(int)" if labels.dtype.kind == "f" else ""
        raise DataError(
            f"{where}labels is {labels.dtype} {_shape(labels)}, want integers [N]{hint}"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{where}labels has {len(labels)} rows for {len(images)} images, want as many"
        )
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        wanted = f"want 0..{num_classes - 1}"
        if not named and part == "train":
            wanted = "which is no class number; the setting labels maps labels to classes"
        elif named:
            wanted += f" for the {num_classes} classes with names"
        raise DataError(f"{where}labels[{row}] is {labels[row]}, {wanted}")
    return Split(images, labels.astype(np.int32))


def measure(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel of `images [N, H, W, C]` uint8.

    They are in [0, 1] units, rounded to 4 decimals. A standard deviation is at least 1/255, the
    smallest step, so that models can divide by that of a constant channel.
    """
    # Sums of integers are exact, and blocks keep them small. np.std would hold a float64 copy of
    # all images (1.2 GB for CIFAR-10).
    total, squares = np.zeros((2, images[0].size), np.int64)
    for start in range(0, len(images), 1000):  # 255² fits uint16, and a sum of 1000 of them uint32
        pixels = images[start : start + 1000].reshape(-1, images[0].size).astype(np.uint16)
        total += pixels.sum(0, dtype=np.uint32)
        squares += (pixels * pixels).sum(0, dtype=np.uint32)
    count, channels = images[..., 0].size, images.shape[3]
    mean = total.reshape(-1, channels).sum(0) / count
    variance = squares.reshape(-1, channels).sum(0) / count - mean**2
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1)
    return tuple(np.round(mean / 255, 4).tolist()), tuple(np.round(std / 255, 4).tolist())


def read_npz(
    path: Path, keys: Sequence[str] = NPZ_KEYS, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Read the arrays `keys` of an .npz file, without unpickling, as {key: array}.

    The arrays of `optional` are read if the file has them. Raises `DataError`, which names the file
    and what is wrong with it.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}, want an .npz with {', '.join(keys)}")
    arrays, key = {}, "it"
    try:
        # np.load would try a file that is not a zip as .npy, and suggest unpickling it.
        with zipfile.ZipFile(path) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist()]
            missing = [name for name in keys if name not in present]
            if missing:
                raise DataError(f"{path}: no array {', '.join(missing)}; it has {present}")
            keys = [*keys, *(name for name in optional if name in present)]
            expanded = sum(archive.getinfo(f"{key}.npy").file_size for key in keys)
            check_fits(expanded, f"{path}: its arrays")
            for key in keys:
                with archive.open(f"{key}.npy") as file:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    except D3JaxError:
        raise
    # Flipped bits in a file raised eleven types, from BadZipFile to SyntaxError.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} ({path.stat().st_size} bytes): {key} cannot be read as .npz: {reason}"
        ) from error
    return arrays


def fingerprint(dataset: Dataset) -> str:
    """Return a hash of a data set's images, labels and `info` as 16 hex digits.

    It changes with any pixel, label, shape, dtype or field of `info`.
    """
    start = repr(dataclasses.astuple(dataset.info))
    return _hash_of((*dataset.train, *dataset.test), start)


def split_fingerprint(split: Split) -> str:
    """Return a hash of the images and labels of one split as 16 hex digits."""
    return _hash_of(split, "")


def _hash_of(arrays: Iterable[Array], start: str) -> str:
    """Return a hash of a text and the dtypes, shapes and values of arrays as 16 hex digits."""
    digest = hashlib.sha256(start.encode())
    for each in arrays:
        array = np.ascontiguousarray(each)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def few(items: Iterable[Any]) -> str:
    """Join the first items for a message and count the others: "a, b and 3 more"."""
    items = list(items)
    rest = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return names(items[:SHOWN]) + rest


def _shape(array: Array) -> str:
    return str(list(array.shape))


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an .npz file, as a whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        np.savez(Path(scratch, path.name), **arrays)  # pyright: ignore[reportArgumentType]  # not `allow_pickle`
        os.replace(Path(scratch, path.name), path)
