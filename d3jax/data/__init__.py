"""Data sets: where images come from, checked, and which of them a defender holds."""

from collections.abc import Callable
from typing import Any

from ..core.types import Dataset
from .arrays import fingerprint, from_arrays
from .digits import DigitsConfig, digits
from .image_folder import FolderConfig, folder
from .npz import NpzConfig, npz
from .reserved import reserve
from .synthetic import SyntheticConfig, synthetic
from .tfds import TfdsConfig, tfds

DATASETS: dict[str, tuple[type, Callable[[Any], Dataset]]] = {
    "digits": (DigitsConfig, digits),
    "synthetic": (SyntheticConfig, synthetic),
    "npz": (NpzConfig, npz),
    "folder": (FolderConfig, folder),
    "tfds": (TfdsConfig, tfds),
}

__all__ = [
    "DATASETS",
    "DigitsConfig",
    "FolderConfig",
    "NpzConfig",
    "SyntheticConfig",
    "TfdsConfig",
    "digits",
    "fingerprint",
    "folder",
    "from_arrays",
    "npz",
    "reserve",
    "synthetic",
    "tfds",
]
