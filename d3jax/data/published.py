"""Data sets as their authors publish them: download the archives, check them, and read them.

No archive is unpacked to disk and nothing is unpickled: of CIFAR the binary version is read.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.errors import DataError
from . import archive_readers as readers
from .archive_readers import Files, Splits
from .arrays import NPZ_KEYS
from .usual import USUAL


class Archive(NamedTuple):
    """A file of a published data set: its name, its address and its published MD5 checksum."""

    name: str
    url: str
    md5: str


class Published(NamedTuple):
    """A data set as its authors publish it: the archives, their reader and the image size.

    `read(files, size)` returns its training and test arrays and its class names. `size` is the side
    in pixels of its images where they vary in size (0: it is fixed).
    """

    archives: tuple[Archive, ...]
    read: Callable[[Files, int], Splits]
    size: int = 0


def read_published(name: str, files: Files, size: int = 0) -> dict[str, np.ndarray]:
    """Read the archives of a published data set into the arrays of an .npz, as {key: array}.

    Args:
        name: the data set.
        files: its archives by their published names.
        size: the side of the images in pixels, for sets whose images vary in size (0: the default).

    Raises:
        DataError: a file is damaged, or is not what its name says.
    """
    published = PUBLISHED[name]
    try:
        train, test, classes = published.read(files, size or published.size)
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        # KeyError: a member that the archive does not have.
        raise DataError(
            f"{', '.join(map(str, files.values()))}: not the published archive of {name}: {error}"
        ) from error
    arrays = map(np.asarray, (*train, *test))
    return dict(zip(NPZ_KEYS, arrays, strict=True)) | {"class_names": np.array(classes)}


def local_files(name: str, source: Path) -> dict[str, Path]:
    """Return the paths of a published data set's archives in a local folder, by archive name.

    `source` may be the archive itself where there is only one. Raises `DataError` where a file is
    missing, and says where it is published.
    """
    archives = PUBLISHED[name].archives
    if len(archives) == 1 and source.is_file():
        return {archives[0].name: source}
    files = {archive.name: source / archive.name for archive in archives}
    if missing := [archive for archive in archives if not files[archive.name].is_file()]:
        wanted = "; ".join(f"{archive.name} (from {archive.url})" for archive in missing)
        raise DataError(f"{source}: want the folder that holds {wanted}")
    return files


def altered(name: str, files: Files) -> list[str]:
    """Return the names of a data set's archives whose MD5 checksum is not the published one."""
    return [one.name for one in PUBLISHED[name].archives if _md5(files[one.name]) != one.md5]


def download(name: str, folder: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Download the archives of a data set that `folder` lacks; return the paths of all, by name.

    `say` gets a line for each download. An archive is kept only if its checksum is the published
    one. Raises `DataError` where an address cannot be read or sends something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for archive in PUBLISHED[name].archives:
        files[archive.name] = folder / archive.name
        if not files[archive.name].is_file() or _md5(files[archive.name]) != archive.md5:
            say(f"downloading {archive.url}")
            _download(archive, files[archive.name])
    return files


def _download(archive: Archive, path: Path) -> None:
    partial = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(archive.url, timeout=60) as source, partial.open("wb") as file:
            while block := source.read(1 << 20):
                file.write(block)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{archive.url}: cannot be downloaded ({error}); download it yourself, and give its "
            "place with --from"
        ) from error
    if (found := _md5(partial)) != archive.md5:
        raise DataError(
            f"{archive.url}: sent a file with MD5 {found}, want {archive.md5}; it is in {partial}"
        )
    os.replace(partial, path)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _archives(address: str, md5s: Mapping[str, str]) -> tuple[Archive, ...]:
    return tuple(Archive(name, address + name, md5) for name, md5 in md5s.items())


_TORONTO = "https://www.cs.toronto.edu/~kriz/"

PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        _archives(_TORONTO, {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}),
        readers.cifar10,
    ),
    "cifar100": Published(
        _archives(_TORONTO, {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}),
        readers.cifar100,
    ),
    "svhn": Published(
        _archives(
            "http://ufldl.stanford.edu/housenumbers/",
            {
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
        ),
        readers.svhn,
    ),
    "fashion_mnist": Published(
        _archives(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
        readers.idx_reader(readers.CLOTHES),
    ),
    "mnist": Published(
        _archives(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
        readers.idx_reader([str(digit) for digit in range(10)]),
    ),
    "gtsrb": Published(
        _archives(
            "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/",
            {
                "GTSRB-Training_fixed.zip": "513f3c79a4c5141765e10e952eaa2478",
                "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
                "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
            },
        ),
        readers.gtsrb,
        size=32,
    ),
    "tiny_imagenet": Published(
        _archives(
            "http://cs231n.stanford.edu/",
            {"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"},
        ),
        readers.tiny_imagenet,
        size=64,
    ),
}
"""The data sets that `python -m d3jax.data` makes an .npz of."""


def config_line(name: str, path: str) -> str:
    """Return the `dataset:` line of a study's YAML for an .npz that was made of a published set."""
    usual = USUAL[name]
    shown = ", ".join(
        f"{key}: {list(value) if isinstance(value, tuple) else str(value).lower()}"
        for key, value in usual.items()
    )
    return f"dataset: {{name: npz, path: {path}, {shown}}}"
