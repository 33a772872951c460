"""TensorFlow Datasets, prepared once into an .npz cache. Where the cache exists nothing of TensorFlow is imported."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import tempfile
import textwrap
import typing
from pathlib import Path
from typing import Any

import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import ConfigError, DataError, did_you_mean, install, names
from ..core.paths import user_path
from ..core.types import Dataset
from .arrays import NPZ_KEYS, Arrays, from_arrays, read_npz

_KNOWN: dict[str, dict[str, Any]] = {
    "cifar10": {
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.247, 0.243, 0.261),
        "crop": 4,
        "flip": True,
    },
    "cifar100": {
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "crop": 4,
        "flip": True,
    },
    "svhn_cropped": {
        "mean": (0.4377, 0.4438, 0.4728),
        "std": (0.198, 0.201, 0.197),
        "crop": 4,
        "flip": False,
    },
    "fashion_mnist": {"mean": (0.2860,), "std": (0.3530,), "crop": 2, "flip": False},
    "mnist": {"mean": (0.1307,), "std": (0.3081,), "crop": 2, "flip": False},
}
"""What the field normalises and augments with. Other sets are measured, and neither cropped nor flipped."""


@dataclasses.dataclass(frozen=True)
class TfdsConfig:
    """An image classification set of TensorFlow Datasets with `image` and `label`."""

    usual: typing.ClassVar = tuple(_KNOWN)
    """Names that messages suggest."""

    dataset: str = option(
        dataclasses.MISSING, "name in TensorFlow Datasets: cifar10, or name/config:version"
    )
    train_split: str = option("train", "its split to train on, or a part of one: train[:80%]")
    test_split: str = option("test", "its split to test on: test, validation, train[80%:]")
    data_dir: str = option("", "where tensorflow_datasets keeps its files (empty: its default)")
    cache_dir: str = option(
        "", "where the .npz made of them lies (empty: $D3JAX_CACHE, or ~/.cache/d3jax)"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not re.fullmatch(r"\w[\w.:/+-]*", self.dataset):
            raise ConfigError(
                f"dataset: {self.dataset!r} is no name of a TensorFlow data set; want one like cifar10"
            )
        name = re.split("[:/]", self.dataset)[0]
        if name != name.lower():
            raise ConfigError(
                f"dataset: {name!r} is no name of a TensorFlow data set, which are in lower case"
                f"{did_you_mean(name, _KNOWN)}"
            )

    @classmethod
    def from_argument(cls, argument: str) -> dict[str, Any]:
        """The settings that `tfds:<argument>` stands for in a config."""
        return {"dataset": argument}

    def build(self) -> Dataset:
        """Return the data set, read or made."""
        return make_tfds(self)


def make_tfds(config: TfdsConfig) -> Dataset:
    """The data set, from its cache; the first time it is downloaded and prepared, which needs the extra `tfds`.

    Raises `DataError` when it cannot be prepared, has images of varying size, or its cache cannot be read or written.
    """
    folder = user_path(
        config.cache_dir or os.environ.get("D3JAX_CACHE") or "~/.cache/d3jax", "cache_dir"
    )
    splits = (config.train_split, config.test_split)
    own = "" if splits == ("train", "test") else f"-{'-'.join(splits)}"
    cache = folder / (re.sub(r"[^\w.+-]", "-", config.dataset + own) + ".npz")
    if not cache.exists():
        try:
            folder.mkdir(
                parents=True, exist_ok=True
            )  # first: a folder that cannot be written should not cost a download
            _write(cache, _prepare(config))
        except OSError as error:
            raise DataError(f"{cache}: the cache cannot be written: {error}") from error
    try:
        arrays = read_npz(cache, (*NPZ_KEYS, "class_names"))
    except DataError as error:
        raise DataError(f"{error}; delete this cache and it is prepared anew") from error
    return from_arrays(
        (arrays["train_images"], arrays["train_labels"]),
        (arrays["test_images"], arrays["test_labels"]),
        name=config.dataset,
        source=cache,
        classes=[str(name) for name in arrays["class_names"]],
        **_KNOWN.get(re.split("[:/]", config.dataset)[0], {}),
    )


def _prepare(config: TfdsConfig) -> dict[str, np.ndarray]:
    """What the cache holds, from tensorflow_datasets. A builder raises whatever its download and its parser raise."""
    source = f"tfds:{config.dataset}"
    try:
        # Imports importlib_resources and TensorFlow when it first needs them, and depends on neither.
        builder = _builder(config)
        _check_features(source, builder.info.features)
        _check_splits(source, config, builder.info.splits)
        if importlib.util.find_spec("tensorflow") is None and not builder.is_prepared():
            raise ImportError("No module named 'tensorflow'")  # it would say so after the download
        # Of its formats only array_record is read without TensorFlow.
        builder.download_and_prepare(file_format="array_record")
        _check_splits(source, config, builder.info.splits)
        splits = (config.train_split, config.test_split)
        train, test = (_read(builder.as_data_source(split=split)) for split in splits)
        classes = builder.info.features["label"].names  # some sets know them only now
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"{source}: preparing it takes more packages, {install('tfds')} ({_short(error)})"
        ) from error
    except Exception as error:
        raise DataError(
            f"{source}: tensorflow_datasets cannot prepare it: {type(error).__name__}: {_short(error)}"
        ) from error
    # Checked before it is cached, so that a set that is no use leaves no file behind.
    dataset = from_arrays(train, test, source=source, classes=classes)
    arrays = map(np.asarray, (*dataset.train, *dataset.test))
    return dict(zip(NPZ_KEYS, arrays, strict=True)) | {
        "class_names": np.array(dataset.info.classes)
    }


def _builder(config: TfdsConfig) -> Any:
    """TFDS's builder, whose decorators hide what its methods take."""
    import tensorflow_datasets

    return tensorflow_datasets.builder(
        config.dataset,
        data_dir=config.data_dir and str(user_path(config.data_dir, "data_dir")) or None,
    )


def _check_features(source: str, features: Any) -> None:
    """Refuses what could not become one array, before anything is downloaded."""
    missing = [key for key in ("image", "label") if key not in features]
    if missing:
        raise DataError(
            f"{source}: no image classification set: no {' and no '.join(missing)} among {', '.join(features)}"
        )
    shape = features["image"].shape
    if None in shape:
        raise DataError(
            f"{source}: its images vary in size, {list(shape)}; want one size (save them as files and use `folder`)"
        )


def _check_splits(source: str, config: TfdsConfig, there: Any) -> None:
    """Refuse splits that the set has not. Some sets know theirs only once they are prepared."""
    for setting in ("train_split", "test_split"):
        split = getattr(config, setting)
        if there and re.split(r"[\[+]", split)[0] not in there:
            raise DataError(
                f"{source}: {setting}: it has no split {split!r}; it has {names(there)}"
            )


def _read(source: Any) -> Arrays:
    images, labels = zip(*((example["image"], example["label"]) for example in source), strict=True)
    return np.stack(images), np.array(labels)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the .npz whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        np.savez(Path(scratch, path.name), **arrays)  # pyright: ignore[reportArgumentType]  # not `allow_pickle`
        os.replace(Path(scratch, path.name), path)


def _short(error: Exception) -> str:
    return textwrap.shorten(
        str(error), 500, placeholder=" …"
    )  # tfds prints whole examples and lists of all data sets
