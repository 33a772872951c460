"""Readers of the archives of published data sets, which neither unpack to disk nor unpickle."""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .arrays import Arrays, few
from .pictures import decode_picture

Files = Mapping[str, Path]
"""The archives of a data set on disk, by their published names."""

Splits = tuple[Arrays, Arrays, list[str]]
"""Training and test arrays, not checked yet, and the class names."""


def _cifar(
    files: Files, folder: str, parts: Sequence[str], test: str, label_bytes: int, names: str
) -> Splits:
    """Read the binary archive of CIFAR-10 or CIFAR-100 as train and test arrays and class names.

    A row of its files is `label_bytes` labels, of which the last is used, and an image.
    """

    def split(members: Sequence[str]) -> Arrays:
        content = b"".join(_member(archive, f"{folder}/{member}") for member in members)
        rows = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + 3072)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32)

    (path,) = files.values()
    with tarfile.open(path, "r:gz") as archive:
        classes = _member(archive, f"{folder}/{names}").decode("utf8").split()
        return split(parts), split([test]), classes


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(name)
    if content is None:
        raise ValueError(f"{name} is no file in it")
    return content.read()


def cifar10(files: Files, _size: int) -> Splits:
    """Read the binary archive of CIFAR-10 as train and test arrays and class names."""
    parts = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar(files, "cifar-10-batches-bin", parts, "test_batch.bin", 1, "batches.meta.txt")


def cifar100(files: Files, _size: int) -> Splits:
    """Read the binary archive of CIFAR-100, with fine labels, as arrays and class names."""
    return _cifar(files, "cifar-100-binary", ["train.bin"], "test.bin", 2, "fine_label_names.txt")


def svhn(files: Files, _size: int) -> Splits:
    """Read the MATLAB files of SVHN's cropped digits as train and test arrays and class names.

    Label 10 means the digit 0.
    """
    import scipy.io

    splits = []
    for path in files.values():
        try:
            content = scipy.io.loadmat(path, variable_names=["X", "y"])
        except (scipy.io.matlab.MatReadError, NotImplementedError, TypeError) as error:
            raise ValueError(f"{path.name} is no MATLAB 5 file: {error}") from error
        images = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))
        splits.append((images, content["y"].ravel().astype(np.int32) % 10))
    return splits[0], splits[1], [str(digit) for digit in range(10)]


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the array in an IDX file of unsigned bytes, compressed by gzip."""
    with gzip.open(path, "rb") as file:
        content = file.read()
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path.name} is no IDX file of {dimensions} dimensions")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def idx_reader(classes: Sequence[str]) -> Callable[[Files, int], Splits]:
    """Return a function that reads the four IDX files of MNIST, or of a set in MNIST's format."""

    def read(files: Files, _size: int) -> Splits:
        train, test = (
            (_idx(files[f"{part}-images-idx3-ubyte.gz"], 3)[..., None],
             _idx(files[f"{part}-labels-idx1-ubyte.gz"], 1).astype(np.int32))
            for part in ("train", "t10k")
        )  # fmt: skip
        return train, test, list(classes)

    return read


def gtsrb(files: Files, size: int) -> Splits:
    """Read the archives of GTSRB as arrays, with whole pictures resized to `size` pixels a side.

    The pictures are not cut to the signs' boxes.
    """
    training, pictures, truth = files.values()
    with zipfile.ZipFile(training) as archive:
        members = sorted(name for name in archive.namelist() if name.endswith(".ppm"))
        labels = np.array([int(name.split("/")[-2]) for name in members])
        train = _pictures(archive, members, size), labels
    with zipfile.ZipFile(truth) as archive:
        lines = archive.read("GT-final_test.csv").decode("utf8").splitlines()
    rows = list(csv.DictReader(lines, delimiter=";"))
    with zipfile.ZipFile(pictures) as archive:
        members = [f"GTSRB/Final_Test/Images/{row['Filename']}" for row in rows]
        test = _pictures(archive, members, size), np.array([int(row["ClassId"]) for row in rows])
    return train, test, list(SIGNS)


def tiny_imagenet(files: Files, size: int) -> Splits:
    """Read the archive of Tiny-ImageNet as arrays, with its validation images as the test set."""
    (path,) = files.values()
    top = "tiny-imagenet-200"
    with zipfile.ZipFile(path) as archive:
        folders = archive.read(f"{top}/wnids.txt").decode("utf8").split()
        classes = sorted(folders)
        members = sorted(
            name
            for name in archive.namelist()
            if name.startswith(f"{top}/train/") and name.endswith(".JPEG")
        )
        labels = np.array([classes.index(name.split("/")[2]) for name in members])
        train = _pictures(archive, members, size), labels
        lines = archive.read(f"{top}/val/val_annotations.txt").decode("utf8").splitlines()
        pairs = [line.split("\t")[:2] for line in lines if line]
        members = [f"{top}/val/images/{file}" for file, _ in pairs]
        test = _pictures(archive, members, size), np.array([classes.index(c) for _, c in pairs])
        words = archive.read(f"{top}/words.txt").decode("utf8").splitlines()
    return train, test, _readable(classes, words)


def _readable(classes: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Return a readable class name for each WordNet id of Tiny-ImageNet.

    It is the first word of the id; the id stays with a word that two classes share.
    """
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    first = [words.get(name, name).split(",")[0] for name in classes]
    counts = Counter(first)
    return [f"{w} ({c})" if counts[w] > 1 else w for w, c in zip(first, classes, strict=True)]


def _pictures(archive: zipfile.ZipFile, members: Sequence[str], size: int) -> np.ndarray:
    """Decode the pictures `members` of a zip archive as an array [N, size, size, 3] uint8."""
    if not members:
        raise ValueError(f"it holds no pictures; it holds {few(archive.namelist())}")
    images = np.empty((len(members), size, size, 3), np.uint8)
    for row, name in enumerate(members):
        images[row] = decode_picture(io.BytesIO(archive.read(name)), name, size, size, 3)
    return images


CLOTHES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
SIGNS = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70",
    "speed limit 80", "end of speed limit 80", "speed limit 100", "speed limit 120", "no passing",
    "no passing for trucks", "right of way", "priority road", "yield", "stop", "no vehicles",
    "no trucks", "no entry", "danger", "curve left", "curve right", "double curve", "bumpy road",
    "slippery road", "road narrows", "road works", "traffic signals", "pedestrians", "children",
    "bicycles", "ice or snow", "wild animals", "end of limits", "turn right", "turn left",
    "ahead only", "straight or right", "straight or left", "keep right", "keep left", "roundabout",
    "end of no passing", "end of no passing for trucks",
)  # fmt: skip
