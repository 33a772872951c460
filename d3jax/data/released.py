"""Poisoned data sets as files: what an attacker releases, with or without what is known about it.

A released set is an .npz data set (`data.npz`) with some more arrays. Each of them is optional.

| array | meaning |
| --- | --- |
| `poisoned` | bool [N]: the training images that the attacker poisoned |
| `covers` | bool [N]: training images with a trigger that keep their labels |
| `original_labels` | integers [N]: the true labels of the training images |
| `triggered_images` | uint8 [n, H, W, C]: test images with the trigger |
| `triggered_rows` | integers [n]: the row of the test image that each of them was made of |
| `wanted_labels` | integers [K]: the class that the attacker wants for images of each class |
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.errors import DataError
from ..core.types import Dataset, Split
from .arrays import NPZ_KEYS, read_npz, write_npz

OPTIONAL = (
    "poisoned",
    "covers",
    "original_labels",
    "triggered_images",
    "triggered_rows",
    "wanted_labels",
)
KINDS = {"poisoned": "b", "covers": "b", "triggered_images": "u"}
"""The NumPy kind of each optional array; the others are integers."""


class Released(NamedTuple):
    """A poisoned data set and what is known about the poison (None: not known).

    `train` is the poisoned training set [N] and `test` the clean test set. The module describes the
    other fields.
    """

    train: Split
    test: Split
    classes: tuple[str, ...] | None = None
    poisoned: np.ndarray | None = None
    covers: np.ndarray | None = None
    original_labels: np.ndarray | None = None
    triggered_images: np.ndarray | None = None
    triggered_rows: np.ndarray | None = None
    wanted_labels: np.ndarray | None = None


def write_released(path: Path, released: Released) -> None:
    """Write a released set as .npz; unknown arrays are left out. Raises `DataError` as below."""
    parts = (*released.train, *released.test)
    arrays: dict[str, np.ndarray] = dict(zip(NPZ_KEYS, map(np.asarray, parts), strict=True))
    if released.classes is not None:
        arrays |= {"class_names": np.array(released.classes)}
    known = {name: getattr(released, name) for name in OPTIONAL}
    check_released_set(str(path), released)
    write_npz(path, arrays | {name: np.asarray(v) for name, v in known.items() if v is not None})


def read_released(path: Path) -> Released:
    """Read a released set from an .npz file; raise `DataError` if its arrays do not fit together.

    The images and labels themselves are checked where the file is read as a data set.
    """
    arrays = read_npz(path, optional=("class_names", *OPTIONAL))
    names = arrays.get("class_names")
    released = Released(
        Split(arrays["train_images"], arrays["train_labels"]),
        Split(arrays["test_images"], arrays["test_labels"]),
        None if names is None else tuple(names.tolist()),
        **{name: arrays.get(name) for name in OPTIONAL},
    )
    check_released_set(str(path), released)
    return released


def check_released_set(source: str, released: Released) -> None:
    """Raise `DataError`, which names the array, where the arrays of a released set do not fit."""
    train, test = len(released.train.labels), len(released.test.labels)
    shown = released.triggered_images
    lengths = {"poisoned": train, "covers": train, "original_labels": train}
    lengths["triggered_rows"] = 0 if shown is None else len(shown)
    for name in OPTIONAL:
        array = getattr(released, name)
        if array is None:
            continue
        array = np.asarray(array)
        if array.dtype.kind not in KINDS.get(name, "iu"):
            wanted = {"b": "bool", "u": "uint8"}.get(KINDS.get(name, ""), "integers")
            raise DataError(f"{source}: {name} is {array.dtype}, want {wanted}")
        if name in lengths and array.shape != (lengths[name],):
            raise DataError(f"{source}: {name} is {list(array.shape)}, want [{lengths[name]}]")
    together = ("triggered_images", "triggered_rows", "wanted_labels")
    given = [name for name in together if getattr(released, name) is not None]
    if given and len(given) < len(together):
        missing = ", ".join(name for name in together if name not in given)
        raise DataError(f"{source}: it has {', '.join(given)} but no {missing}")
    if shown is None:
        return
    if shown.dtype != np.uint8 or shown.shape[1:] != released.test.images.shape[1:]:
        raise DataError(
            f"{source}: triggered_images is {shown.dtype} {list(shown.shape)}, "
            f"want uint8 images like test_images"
        )
    rows = np.asarray(released.triggered_rows)
    if rows.size and not 0 <= rows.min() <= rows.max() < test:
        raise DataError(f"{source}: triggered_rows leaves the {test} test images")


def released_of(
    poisoned: Split, flags: np.ndarray, clean: Dataset, triggered: Split, wanted: np.ndarray
) -> Released:
    """Return the `Released` of a poisoned training set [N] with `flags` and triggered test images.

    `clean` is the data set that was poisoned. `triggered` are all its test images with the trigger,
    in order. `wanted` [K] is the class that the attacker wants for each class. Images of classes
    that are not attacked are left out.
    """
    labels = np.asarray(clean.test.labels)
    rows = np.flatnonzero(wanted[labels] != labels)
    changed = (np.asarray(poisoned.images) != np.asarray(clean.train.images)).any((1, 2, 3))
    return Released(
        poisoned,
        clean.test,
        clean.info.classes,
        flags,
        changed & ~flags,
        np.asarray(clean.train.labels),
        np.asarray(triggered.images)[rows],
        rows,
        wanted,
    )
