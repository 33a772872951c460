"""Data sets from several sources, and the draw of a defender's reserved clean images.

`data.digits(size=16)` returns settings, and their `build()` returns the checked data set.
`DATASETS` maps `name -> (config class, constructor(config))`.
"""

from collections.abc import Callable
from typing import Any

from ..config.fields import take_by_name
from ..core.types import Dataset
from .arrays import fingerprint, from_arrays
from .digits import DigitsConfig, make_digits
from .hf import HfConfig, make_hf
from .image_folder import FolderConfig, make_folder
from .npz import NpzConfig, make_npz
from .reserved import reserve
from .synthetic import SyntheticConfig, make_synthetic
from .tfds import TfdsConfig, make_tfds

digits = DigitsConfig
folder = FolderConfig
hf = HfConfig
npz = NpzConfig
synthetic = SyntheticConfig
tfds = TfdsConfig

DATASETS: dict[str, tuple[type, Callable[[Any], Dataset]]] = {
    "digits": (DigitsConfig, make_digits),
    "synthetic": (SyntheticConfig, make_synthetic),
    "npz": (NpzConfig, make_npz),
    "folder": (FolderConfig, make_folder),
    "tfds": (TfdsConfig, make_tfds),
    "hf": (HfConfig, make_hf),
}

take_by_name(cls for cls, _ in DATASETS.values())

__all__ = [
    "DATASETS",
    "DigitsConfig",
    "FolderConfig",
    "HfConfig",
    "NpzConfig",
    "SyntheticConfig",
    "TfdsConfig",
    "digits",
    "fingerprint",
    "folder",
    "from_arrays",
    "hf",
    "make_digits",
    "make_folder",
    "make_hf",
    "make_npz",
    "make_synthetic",
    "make_tfds",
    "npz",
    "reserve",
    "synthetic",
    "tfds",
]
