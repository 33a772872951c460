"""Data sets: where images come from, checked, and which of them a defender holds."""

from collections.abc import Callable
from typing import Any

from ..base import Dataset
from .arrays import fingerprint, from_arrays
from .reserved import reserve
from .sources import DigitsConfig, FolderConfig, NpzConfig, SyntheticConfig, digits, folder, npz, synthetic
from .tfds_cache import TfdsConfig, tfds

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
