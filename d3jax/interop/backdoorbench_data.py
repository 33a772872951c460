"""The poisoned training set and the triggered test set of a record of BackdoorBench.

The file `attack_result.pt` of a record has the entries `bd_train` and `bd_test`. Each is a mapping:

- `original_index_array`, integers [M]: the row of the clean set that each image is made of
- `poison_indicator`, numbers [N]: 1 for the rows of the clean set that the attack changed
- `bd_data_container`: `save_folder_path`, and `data_dict` with an entry for every changed row. The
  entry has the `path` of a PNG picture, and as `other_info` the new and the original label

All other images are those of the clean set, so the record does not hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import CheckpointError, DataError, names
from ..core.types import Dataset, Split
from ..data.arrays import few
from ..data.pictures import decode_picture
from ..data.released import Released

DAMAGED = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""What the reading of a damaged record raises; RuntimeError is PyTorch's."""


class Changed(NamedTuple):
    """The images of a training or test set that an attack changed.

    `places` [n] are their places among the M images of the set, and `rows` [n] their rows in the
    clean set. `labels` [n] are the new labels, `own` [n] the original ones, and `paths` [n] the
    files of the pictures.
    """

    places: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    own: np.ndarray
    paths: list[Path]


def check_keys(file: Path, found: Any) -> None:
    """Raise `CheckpointError` where the contents of a file are not a saved attack."""
    wanted = ("model", "num_classes", "clean_data", "img_size", "bd_test")
    there = list(found) if isinstance(found, Mapping) else []
    if missing := [key for key in wanted if key not in there]:
        raise CheckpointError(
            f"{file}: is no saved attack of BackdoorBench: it has no {names(missing)}"
        )


def released_of_record(found: Mapping[str, Any], folder: Path, clean: Dataset) -> Released:
    """Return the `Released` of the contents `found` of the file `folder/attack_result.pt`.

    `clean` is the data set that was poisoned, in the order of the record. Pictures are read from
    `folder` alone. Without `bd_train`, as of LIRA and Blind, the training set is the clean one, and
    `poisoned` is None. Triggered images that keep their class are left out, as no attack succeeds
    on them.

    Raises `CheckpointError` where the record is damaged or names files outside of it, and
    `DataError` where a picture is missing or the data set is not that of the record.
    """
    classes = clean.info.num_classes
    rows, train = np.arange(len(clean.train.labels)), None
    if found.get("bd_train") is not None:
        rows, train = _changed(found, "bd_train", folder, clean.train, classes)
    _, test = _changed(found, "bd_test", folder, clean.test, classes)
    wanted = _wanted(folder, [part for part in (train, test) if part], classes)
    attacked = np.flatnonzero(test.labels != test.own)
    if not len(attacked):
        raise CheckpointError(f"{folder}: bd_test has no triggered image whose class is changed")
    shown = [test.paths[place] for place in attacked]
    _check_there(folder, shown + (train.paths if train else []))
    images, labels = (np.asarray(part)[rows] for part in clean.train)
    original, poisoned, covers = labels.copy(), None, None
    if train is not None:
        images[train.places], labels[train.places] = _pictures(train.paths, clean), train.labels
        poisoned, covers = np.zeros((2, len(rows)), bool)
        covers[train.places] = _covers(train, wanted)
        poisoned[train.places] = ~covers[train.places]
    return Released(
        Split(images, labels),
        clean.test,
        clean.info.classes,
        poisoned,
        covers if covers is not None and covers.any() else None,
        original,
        _pictures(shown, clean),
        test.rows[attacked],
        wanted,
    )


def _changed(
    found: Mapping[str, Any], name: str, folder: Path, clean: Split, classes: int
) -> tuple[np.ndarray, Changed]:
    """Return a set of a record: the clean rows [M] of its images, and the `Changed` among them."""
    source = f"{folder}: {name}"
    try:
        state = found[name]
        rows = np.asarray(state["original_index_array"]).astype(np.int64)
        flags = np.asarray(state["poison_indicator"]) == 1
        base = state["bd_data_container"]["save_folder_path"]
        entries = {
            int(key): entry for key, entry in state["bd_data_container"]["data_dict"].items()
        }
        _check_rows(source, rows, flags, len(clean.labels))
        places = np.flatnonzero(flags[rows])
        chosen = [entries[row] for row in rows[places].tolist()]
        pairs = [[int(label) for label in entry["other_info"][:2]] for entry in chosen]
        labels, own = np.array(pairs, np.int32).reshape(len(chosen), 2).T
        stored = [str(entry["path"]) for entry in chosen]
    except DAMAGED as error:
        raise CheckpointError(
            f"{source} is not as the newest version of BackdoorBench stores it "
            f"({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        ) from error
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise CheckpointError(
            f"{source} has labels from {labels.min()} to {labels.max()}, want 0 to {classes - 1}"
        )
    _check_labels(source, rows[places], own, clean)
    inside = folder.resolve()
    paths = [_inside(source, inside, str(base), path) for path in stored]
    return rows, Changed(places, rows[places], labels, own, paths)


def _check_rows(source: str, rows: np.ndarray, flags: np.ndarray, count: int) -> None:
    """Raise `DataError` where the rows of a record are not those of a clean set of this size."""
    if flags.shape != (count,):
        raise DataError(f"{source} is of {flags.size} images, the data set (--data) has {count}")
    if rows.ndim != 1 or not rows.size or rows.min() < 0 or rows.max() >= count:
        raise DataError(f"{source}: original_index_array leaves the {count} images of the data set")


def _check_labels(source: str, rows: np.ndarray, own: np.ndarray, clean: Split) -> None:
    """Raise `DataError` where the original labels of a record are not those of the data set."""
    there = np.asarray(clean.labels)[rows]
    wrong = np.flatnonzero(there != own)
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"{source}: image {rows[first]} is of class {own[first]}, in the data set (--data) of "
            f"class {there[first]} ({len(wrong)} of {len(own)} labels differ); want the same "
            "images in the order of torchvision"
        )


def _inside(source: str, folder: Path, base: str, stored: str) -> Path:
    """Return the file in the record `folder` (resolved) that a stored path means.

    `base` is the folder of the pictures when the record was written, such as
    ./record/NAME/bd_train_dataset. Raises `CheckpointError` where the file is outside of the
    record, also by a link.
    """
    try:
        top = PurePosixPath(base)
        parts = (top.name, *PurePosixPath(stored).relative_to(top).parts)
        path = folder.joinpath(*parts)
        if ".." not in parts and top.name and path.resolve().is_relative_to(folder):
            return path
    except (
        ValueError,
        OSError,
        RuntimeError,
    ):  # another folder, a NUL character, or a loop of links
        pass
    raise CheckpointError(
        f"{source} names a file outside of the record, which is not read: {stored!r}"
    )


def _check_there(folder: Path, paths: list[Path]) -> None:
    """Raise `DataError`, which names them, where pictures are missing."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        inside = folder.resolve()
        raise DataError(
            f"{folder}: {len(missing)} of {len(paths)} pictures are missing: "
            f"{few(path.relative_to(inside) for path in missing)}"
        )


def _pictures(paths: list[Path], clean: Dataset) -> np.ndarray:
    """Read pictures as uint8 [n, H, W, C] of the shape of the clean images."""
    shape = clean.info.shape
    images = np.empty((len(paths), *shape), np.uint8)
    for place, path in enumerate(paths):
        images[place] = decode_picture(path, str(path), *shape, exact=True)
    return images


def _wanted(folder: Path, parts: list[Changed], classes: int) -> np.ndarray:
    """Return the class [K] that the attacker wants for each class, by the changed labels.

    A class without a changed label keeps itself. Raises `CheckpointError` for a class that gets
    several labels.
    """
    labels = np.concatenate([part.labels for part in parts])
    own = np.concatenate([part.own for part in parts])
    wanted = np.arange(classes)
    wanted[own[labels != own]] = labels[labels != own]
    if (clash := (labels != own) & (labels != wanted[own])).any():
        first = clash.argmax()
        raise CheckpointError(
            f"{folder}: images of class {own[first]} are labelled {labels[first]} and "
            f"{wanted[own[first]]}; want one label for each class"
        )
    return wanted


def _covers(train: Changed, wanted: np.ndarray) -> np.ndarray:
    """Return which of the changed training images are covers, as bool [n].

    A cover has a trigger and keeps its label (WaNet, Input-aware and BPP), although the attacker
    wants another one. An image of the target class keeps its label in any case. If the record has
    covers, they come after the poisoned images in every run of consecutive rows. So an image of the
    target class is a cover if the changed image in the row before it is one.
    """
    kept = train.labels == train.own
    covers = kept & (wanted[train.own] != train.own)
    if covers.any():
        for place in np.flatnonzero(kept & ~covers):
            follows = place > 0 and train.rows[place] == train.rows[place - 1] + 1
            covers[place] = follows and covers[place - 1]
    return covers
