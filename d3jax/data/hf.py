"""Image data sets of Hugging Face `datasets`: a folder on disk, or a name on the Hub."""

from __future__ import annotations

import dataclasses
import io
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import ConfigError, DataError, install, names
from ..core.paths import user_path
from ..core.types import Dataset
from ..runtime.main_memory import check_fits
from .arrays import Arrays, from_arrays
from .pictures import decode_picture
from .usual import USUAL


@dataclasses.dataclass(frozen=True)
class HfConfig:
    """Settings of an image classification set of Hugging Face `datasets`."""

    path: str = option(
        dataclasses.MISSING,
        "a folder that save_to_disk wrote, a folder of parquet files, or a name on the Hub",
    )
    subset: str = option("", "which subset of a set on the Hub (empty: its only one)")
    train_split: str = option("train", "its split to train on")
    test_split: str = option("test", "its split to test on")
    image: str = option("", "the column of images (empty: the only one)")
    label: str = option("", "the column of labels (empty: the only one with named classes)")
    size: int = option(0, "images are resized to size × size pixels (0: they have one size)", low=0)
    channels: Literal[1, 3] = option(3, "1: grey, 3: RGB")
    mean: tuple[float, ...] | None = option(
        None, "per channel, in [0, 1] (null: usual or measured)", low=0, high=1
    )
    std: tuple[float, ...] | None = option(
        None, "per channel, in [0, 1] (null: usual or measured)", above=0, high=1
    )
    crop: int = option(0, "padding in pixels of the random crop (0: none)", low=0)
    flip: bool = option(False, "a mirrored image keeps its class")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.train_split == self.test_split:
            raise ConfigError(
                f"test_split: {self.test_split!r} is the training split; want another one"
            )

    @classmethod
    def from_argument(cls, argument: str) -> dict[str, Any]:
        """Return the settings that the data set name `hf:<argument>` of a config stands for."""
        return {"path": argument}

    def build(self) -> Dataset:
        """Build the Hugging Face data set of these settings, from disk or by a download."""
        return make_hf(self)


def make_hf(config: HfConfig) -> Dataset:
    """Return two splits of a Hugging Face data set, with all pictures decoded, as a `Dataset`.

    Pictures are decoded by the rules of `pictures`. Needs the extra `hf`. `datasets` keeps what it
    downloads in its own cache. Raises `DataError` where the set cannot be read, has no image or
    label column, or varies in size without `size`.
    """
    splits = _open(config)
    source = f"hf:{config.path}"
    for setting in ("train_split", "test_split"):
        if (split := getattr(config, setting)) not in splits:
            raise DataError(f"{source}: {setting}: no split {split!r}; it has {names(splits)}")
    train, test = splits[config.train_split], splits[config.test_split]
    image = _column(source, "image", config.image, train.features, "Image")
    label = _column(source, "label", config.label, train.features, "ClassLabel")
    usual = USUAL.get(Path(config.path).name, {})
    return from_arrays(
        _arrays(source, train, image, label, config),
        _arrays(source, test, image, label, config),
        name=Path(config.path).name,
        source=source,
        classes=getattr(train.features[label], "names", None),
        mean=config.mean or usual.get("mean"),
        std=config.std or usual.get("std"),
        crop=config.crop,
        flip=config.flip,
    )


def _open(config: HfConfig) -> Any:
    """Open the Hugging Face data set that `config` names, and return its splits by name.

    Whatever the readers and the network of `datasets` raise becomes a `DataError`.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hf:{config.path}: reading it takes {install('hf')} ({error})") from error
    datasets.disable_progress_bars()
    place = user_path(config.path)
    try:
        if (place / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(place))
        there = str(place) if place.exists() else config.path
        return datasets.load_dataset(there, config.subset or None)
    except Exception as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        raise DataError(
            f"hf:{config.path}: cannot be read: {type(error).__name__}: {reason}"
        ) from error


def _column(source: str, setting: str, given: str, features: Any, kind: str) -> str:
    """Return the name of the image or label column: the given one, or the only one of that type."""
    if given and given not in features:
        raise DataError(f"{source}: {setting}: no column {given!r}; it has {names(features)}")
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if given or len(found) == 1:
        return given or found[0]
    if not found and setting in features:
        return setting
    raise DataError(
        f"{source}: has {len(found)} columns of {kind}, so name one with {setting}; "
        f"its columns are {names(features)}"
    )


def _arrays(source: str, split: Any, image: str, label: str, config: HfConfig) -> Arrays:
    """Return images [N, H, W, C] uint8 and labels [N] of one split of a Hugging Face set."""
    import datasets

    if type(split.features[image]).__name__ != "Image":
        raise DataError(f"{source}: image: the column {image!r} holds no images")
    encoded = split.cast_column(image, datasets.Image(decode=False))
    height, width = (config.size, config.size) if config.size else _size(source, encoded, image)
    shape = (len(encoded), height, width, config.channels)
    check_fits(int(np.prod(shape)), f"{source}: its images {list(shape)}")
    images = np.empty(shape, np.uint8)
    for row, example in enumerate(encoded):
        name = f"{source}: {image}[{row}]"
        content = _content(name, example[image])
        images[row] = decode_picture(
            content, name, height, width, config.channels, exact=not config.size
        )
    return images, np.asarray(split[label])


def _size(source: str, encoded: Any, image: str) -> tuple[int, int]:
    """Return the height and width of a split's first image, which all other images must have."""
    from PIL import Image

    if not len(encoded):
        raise DataError(f"{source}: has no images")
    name = f"{source}: {image}[0]"
    try:
        with Image.open(_content(name, encoded[0][image])) as first:
            return first.height, first.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a readable image: {error}") from error


def _content(name: str, value: Any) -> io.BytesIO | Path:
    """Return the bytes or the path of one encoded image of a Hugging Face data set."""
    if value and value.get("bytes"):
        return io.BytesIO(value["bytes"])
    if value and value.get("path"):
        return Path(value["path"])
    raise DataError(f"{name}: has no image")
