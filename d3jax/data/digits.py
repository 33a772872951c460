"""The data set of scikit-learn's handwritten digits, which needs no download."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import ConfigError
from ..core.types import Dataset
from ..runtime.main_memory import check_fits
from .arrays import from_arrays
from .reserved import split_by_class


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
    """Settings of scikit-learn's handwritten digits, enlarged from 8×8 pixels.

    The set has 1,797 real grey images in 10 classes: 1,438 to train and 359 to test.
    """

    size: int = option(16, "height and width in pixels, a multiple of 8", low=8)
    resize: Literal["nearest", "bilinear"] = option(
        "nearest", "interpolation that enlarges the 8×8 images"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size % 8:
            raise ConfigError(f"size: {self.size} is not a multiple of 8")

    def build(self) -> Dataset:
        """Build the data set of scikit-learn's digits with these settings."""
        return make_digits(self)


def make_digits(config: DigitsConfig) -> Dataset:
    """Return scikit-learn's handwritten digits as a data set of grey images [size, size, 1].

    The split is fixed: a constant seed draws 20 % of each class for the test set. Raises
    `ConfigError` where images of that size do not fit in main memory.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    check_fits(
        2 * 1797 * config.size**2, f"size: 1,797 images of {config.size}×{config.size} pixels"
    )
    raw = load_digits()
    assert isinstance(raw, Bunch)  # for the type checker: with `return_X_y` it is a pair
    small = np.rint(raw.images / 16 * 255).astype(np.uint8)
    resample = Image.Resampling[config.resize.upper()]
    resized = [Image.fromarray(one).resize((config.size, config.size), resample) for one in small]
    images = np.stack([np.asarray(image) for image in resized])[..., None]
    classes = [str(name) for name in raw.target_names]
    train, test = split_by_class(images, raw.target, len(classes), fraction=0.2, seed=0)
    return from_arrays(train, test, name="digits", classes=classes, crop=config.size // 16)
