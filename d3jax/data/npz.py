"""The reader of data sets in NumPy .npz files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import DataError
from ..core.paths import user_path
from ..core.types import Dataset, Split
from .arrays import Labels, check_classes, from_arrays, read_npz


@dataclasses.dataclass(frozen=True)
class NpzConfig:
    """Settings of a data set in a NumPy .npz file.

    The file holds train_images and test_images, uint8 [N, H, W] or [N, H, W, C], and train_labels
    and test_labels, integers [N].
    """

    path: str = option(
        dataclasses.MISSING,
        "the file; a relative path starts at the current directory",
    )
    class_names: tuple[str, ...] | None = option(
        None, "names of the classes (null: those in the file, or 0, 1, … up to the largest label)"
    )
    labels: Labels = option(
        "from_zero",
        "class of a label: from_zero: the label; from_one: the label minus one; "
        "or a mapping of labels to classes, such as {3: 0, 7: 1}",
    )
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
    limit_train: int = option(0, "use only the first so many training images (0: all)", low=0)
    limit_test: int = option(0, "use only the first so many test images (0: all)", low=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> Dataset:
        """Read the data set from the .npz file that these settings name."""
        return make_npz(self)


def make_npz(config: NpzConfig) -> Dataset:
    """Read a `Dataset` from an .npz file, check it, and cut it to the limits in `config`.

    The whole set is checked and measured before the limits cut it. Raises `DataError` when the file
    cannot be read (pickled arrays never are) or is not a valid data set.
    """
    path = user_path(config.path)
    arrays = read_npz(path, optional=("class_names",))
    for key in ("train_images", "test_images"):
        if arrays[key].ndim == 3:
            arrays[key] = arrays[key][..., None]
    dataset = from_arrays(
        (arrays["train_images"], arrays["train_labels"]),
        (arrays["test_images"], arrays["test_labels"]),
        name=path.stem,
        source=path,
        classes=config.class_names or _names_in(path, arrays.get("class_names")),
        mean=config.mean,
        std=config.std,
        crop=config.crop,
        flip=config.flip,
        labels=config.labels,
    )
    train = _first(dataset.train, config.limit_train)
    check_classes(
        f"{path}: its first {config.limit_train} training images (limit_train)",
        train.labels,
        dataset.info.classes,
    )
    return dataset._replace(
        train=train,
        test=_first(dataset.test, config.limit_test),
    )


def _names_in(path: Path, found: np.ndarray | None) -> list[str] | None:
    """Return the class names in the array `class_names` of an .npz file, or None without one."""
    if found is None:
        return None
    if found.dtype.kind != "U" or found.ndim != 1:
        raise DataError(
            f"{path}: class_names is {found.dtype} {list(found.shape)}, want text [K]; "
            "the setting class_names gives other names"
        )
    return found.tolist()


def _first(split: Split, limit: int) -> Split:
    return Split(split.images[:limit], split.labels[:limit]) if limit else split
