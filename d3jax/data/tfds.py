"""Image classification sets of TensorFlow Datasets (TFDS), prepared once and cached as .npz files.

Where the cache exists, nothing of TensorFlow is imported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import textwrap
import typing
from typing import Any

import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import ConfigError, DataError, did_you_mean, install, names
from ..core.paths import user_path
from ..core.types import Dataset
from .arrays import NPZ_KEYS, Arrays, from_arrays, read_npz, write_npz
from .usual import USUAL

_SUGGESTED = ("cifar10", "cifar100", "svhn_cropped", "fashion_mnist", "mnist")
"""Names that messages suggest."""


@dataclasses.dataclass(frozen=True)
class TfdsConfig:
    """Settings of an image classification set of TensorFlow Datasets (TFDS).

    The set must have the features `image` and `label`.
    """

    usual: typing.ClassVar = _SUGGESTED
    """Names that messages suggest."""

    dataset: str = option(
        dataclasses.MISSING, "name in TensorFlow Datasets: cifar10, or name/config:version"
    )
    train_split: str = option("train", "split to train on, or a part of one: train[:80%]")
    test_split: str = option("test", "split to test on: test, validation, train[80%:]")
    data_dir: str = option(
        "", "folder where tensorflow_datasets keeps its files (empty: its default)"
    )
    cache_dir: str = option(
        "", "folder of the cached .npz file (empty: $D3JAX_CACHE, or ~/.cache/d3jax)"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not re.fullmatch(r"\w[\w.:/+-]*", self.dataset):
            raise ConfigError(
                f"dataset: {self.dataset!r} is not a name of a TensorFlow data set; "
                "want one like cifar10"
            )
        name = re.split("[:/]", self.dataset)[0]
        if name != name.lower():
            raise ConfigError(
                f"dataset: {name!r} is not a name of a TensorFlow data set; these are in lower case"
                f"{did_you_mean(name, _SUGGESTED)}"
            )

    @classmethod
    def from_argument(cls, argument: str) -> dict[str, Any]:
        """Return the settings that the data set name `tfds:<argument>` of a config stands for."""
        return {"dataset": argument}

    def build(self) -> Dataset:
        """Build the TensorFlow data set of these settings, from its cache or by a download."""
        return make_tfds(self)


def make_tfds(config: TfdsConfig) -> Dataset:
    """Return a TensorFlow data set from an .npz cache, which a download makes the first time.

    The preparation needs the extra `tfds`. Raises `DataError` when the set cannot be prepared or
    has images of varying size, or when its cache cannot be read or written.
    """
    folder = user_path(
        config.cache_dir or os.environ.get("D3JAX_CACHE") or "~/.cache/d3jax", "cache_dir"
    )
    splits = (config.train_split, config.test_split)
    own = "" if splits == ("train", "test") else f"-{'-'.join(splits)}"
    cache = folder / (re.sub(r"[^\w.+-]", "-", config.dataset + own) + ".npz")
    if not cache.exists():
        try:
            # Made first: a folder that cannot be written should not cost a download.
            folder.mkdir(parents=True, exist_ok=True)
            write_npz(cache, _prepare(config))
        except OSError as error:
            raise DataError(f"{cache}: the cache cannot be written: {error}") from error
    try:
        arrays = read_npz(cache, (*NPZ_KEYS, "class_names"))
    except DataError as error:
        raise DataError(f"{error}; delete this cache and it is prepared again") from error
    return from_arrays(
        (arrays["train_images"], arrays["train_labels"]),
        (arrays["test_images"], arrays["test_labels"]),
        name=config.dataset,
        source=cache,
        classes=[str(name) for name in arrays["class_names"]],
        **USUAL.get(re.split("[:/]", config.dataset)[0], {}),
    )


def _prepare(config: TfdsConfig) -> dict[str, np.ndarray]:
    """Download a set with tensorflow_datasets, and return its arrays for the .npz cache.

    A builder raises whatever its download and its parser raise; all of it becomes a `DataError`.
    """
    source = f"tfds:{config.dataset}"
    try:
        # TFDS imports importlib_resources and TensorFlow lazily, and declares neither of them.
        builder = _builder(config)
        _check_features(source, builder.info.features)
        _check_splits(source, config, builder.info.splits)
        if importlib.util.find_spec("tensorflow") is None and not builder.is_prepared():
            # TFDS itself would raise this only after the download.
            raise ImportError("No module named 'tensorflow'")
        # Of TFDS's formats, only array_record can be read without TensorFlow.
        builder.download_and_prepare(file_format="array_record")
        _check_splits(source, config, builder.info.splits)
        splits = (config.train_split, config.test_split)
        train, test = (_read(builder.as_data_source(split=split)) for split in splits)
        # Read last, because some sets know their classes only once they are prepared.
        classes = builder.info.features["label"].names
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"{source}: preparing it needs more packages, {install('tfds')} ({_short(error)})"
        ) from error
    except Exception as error:
        raise DataError(
            f"{source}: tensorflow_datasets cannot prepare it: "
            f"{type(error).__name__}: {_short(error)}"
        ) from error
    # Checked before it is cached, so that an unusable set leaves no file.
    dataset = from_arrays(train, test, source=source, classes=classes)
    arrays = map(np.asarray, (*dataset.train, *dataset.test))
    return dict(zip(NPZ_KEYS, arrays, strict=True)) | {
        "class_names": np.array(dataset.info.classes)
    }


def _builder(config: TfdsConfig) -> Any:
    """Return the builder object of tensorflow_datasets for the data set that `config` names.

    It is typed `Any` because decorators hide the arguments of its methods.
    """
    import tensorflow_datasets

    return tensorflow_datasets.builder(
        config.dataset,
        data_dir=config.data_dir and str(user_path(config.data_dir, "data_dir")) or None,
    )


def _check_features(source: str, features: Any) -> None:
    """Raise `DataError` if a TensorFlow data set lacks images or labels, or varies in image size.

    This is checked before any download.
    """
    missing = [key for key in ("image", "label") if key not in features]
    if missing:
        raise DataError(
            f"{source}: not an image classification set: it has no {' and no '.join(missing)} "
            f"among its features {', '.join(features)}"
        )
    shape = features["image"].shape
    if None in shape:
        raise DataError(
            f"{source}: its images vary in size, {list(shape)}; want one size "
            "(save them as files and use `folder`)"
        )


def _check_splits(source: str, config: TfdsConfig, there: Any) -> None:
    """Raise `DataError` if the training or test split of `config` is not one of the set's splits.

    The splits of the TensorFlow data set are `there`. Nothing is checked where `there` is empty:
    some sets know their splits only once prepared.
    """
    for setting in ("train_split", "test_split"):
        split = getattr(config, setting)
        if there and re.split(r"[\[+]", split)[0] not in there:
            raise DataError(
                f"{source}: {setting}: it has no split {split!r}; it has {names(there)}"
            )


def _read(source: Any) -> Arrays:
    """Read all examples of a TensorFlow data source as images [N, H, W, C] and labels [N]."""
    images, labels = zip(*((example["image"], example["label"]) for example in source), strict=True)
    return np.stack(images), np.array(labels)


def _short(error: Exception) -> str:
    # TFDS prints whole examples and lists of all data sets.
    return textwrap.shorten(str(error), 500, placeholder=" …")
