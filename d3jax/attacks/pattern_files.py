"""Trigger patterns that a user gives as a file: a picture, with or without alpha, or an array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..core.errors import AttackError
from ..core.paths import user_path
from ..core.types import DataInfo
from ..data.pictures import read_overlay


class Pattern(NamedTuple):
    """A pattern from a file: `pixels` [h, w, C] uint8 and `alpha` [h, w, 1] uint8, 255 opaque."""

    pixels: np.ndarray
    alpha: np.ndarray


def read_pattern(
    path: str, info: DataInfo, size: tuple[int, int], setting: str = "image"
) -> Pattern:
    """Read the pattern of a trigger from a picture or a .npy array, at `size` (height, width).

    A picture is resized. An array must be uint8 [h, w], [h, w, C] or, with alpha as the last
    channel, [h, w, C + 1], at that size. `setting` is the config field that names the file.

    Raises `DataError` for an unreadable picture. Raises `AttackError` for an array of another kind,
    and for a picture where the data set has neither 1 nor 3 channels.
    """
    file, channels = user_path(path, setting), info.shape[2]
    if file.suffix == ".npy":
        return _from_array(file, path, channels, size, setting)
    if channels not in (1, 3):
        raise AttackError(
            f"{setting}: {path!r}: a picture has 1 or 3 channels, "
            f"the images of {info.name} have {channels} channels; a .npy array can have them"
        )
    return Pattern(*read_overlay(file, *size, channels))


def _from_array(file, path: str, channels: int, size: tuple[int, int], setting: str) -> Pattern:
    """Return the pattern in a .npy file, see `read_pattern`."""
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise AttackError(f"{setting}: {path!r}: not a readable array: {reason}") from error
    array = array[..., None] if array.ndim == 2 else array
    shapes = [(*size, channels), (*size, channels + 1)]
    if array.dtype != np.uint8 or array.shape not in shapes:
        raise AttackError(
            f"{setting}: {path!r}: want uint8 {list(shapes[0])}, or {list(shapes[1])} with alpha, "
            f"got {array.dtype} {list(array.shape)}"
        )
    alpha = (
        array[..., channels:] if array.shape[2] > channels else np.full((*size, 1), 255, np.uint8)
    )
    return Pattern(array[..., :channels], alpha)
