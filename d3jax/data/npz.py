"""Data sets in NumPy .npz files."""

from __future__ import annotations

import dataclasses

from ..config.fields import check_fields, option
from ..core.paths import user_path
from ..core.types import Dataset, Split
from .arrays import Labels, check_classes, from_arrays, read_npz


@dataclasses.dataclass(frozen=True)
class NpzConfig:
    """A NumPy .npz file with train_images, train_labels, test_images, test_labels: uint8 [N, H, W(, C)], integers [N]."""

    path: str = option(
        dataclasses.MISSING,
        "the file; a relative path is looked up from where the command is given",
    )
    class_names: tuple[str, ...] | None = option(
        None, "names of the classes (null: 0, 1, … up to the largest label)"
    )
    labels: Labels = option(
        "from_zero",
        "which class a label means: itself; from_one: one less; or a mapping of labels to classes, such as {3: 0, 7: 1}",
    )
    mean: tuple[float, ...] | None = option(
        None, "per channel, in [0, 1] (null: measured on the training images)", low=0, high=1
    )
    std: tuple[float, ...] | None = option(
        None, "per channel, in [0, 1] (null: measured)", above=0, high=1
    )
    crop: int = option(
        0, "padding in pixels of the random crop that suits the images (0: none)", low=0
    )
    flip: bool = option(False, "a mirrored image keeps its class")
    limit_train: int = option(0, "use the first so many training images (0: all)", low=0)
    limit_test: int = option(0, "use the first so many test images (0: all)", low=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> Dataset:
        """Return the data set, read or made."""
        return make_npz(self)


def make_npz(config: NpzConfig) -> Dataset:
    """The data set in an .npz file, which is checked and measured whole before the limits cut it.

    Raises `DataError` when the file cannot be read (pickled arrays never are) or is no data set.
    """
    path = user_path(config.path)
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


def _first(split: Split, limit: int) -> Split:
    return Split(split.images[:limit], split.labels[:limit]) if limit else split
