"""Generated images of any size."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..config.fields import check_fields, option
from ..core.types import Dataset
from ..runtime.main_memory import check_fits
from .arrays import Arrays, from_arrays


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Generated images of any size: a smooth random prototype per class, shifted a little, plus noise."""

    size: int = option(16, "height and width in pixels", low=4)
    channels: int = option(3, "channels", low=1)
    classes: int = option(10, "classes", low=2)
    train: int = option(2000, "training images", low=1)
    test: int = option(500, "test images", low=1)
    noise: float = option(0.1, "standard deviation of the (uniform) noise, in [0, 1] units", low=0)
    shift: int = option(1, "prototypes move by up to so many pixels each way", low=0)
    seed: int = option(0, "the same seed gives the same images", low=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> Dataset:
        """Return the data set, read or made."""
        return make_synthetic(self)


def make_synthetic(config: SyntheticConfig) -> Dataset:
    """Images [size, size, channels], classes balanced to within one; 60,000 of 32×32×3 take a few seconds."""
    pixels = config.size**2 * config.channels
    check_fits(
        (config.train + config.test) * (pixels + 16),
        f"{config.train} training and {config.test} test images of {config.size}×{config.size}×{config.channels}",
    )
    wide = config.size + 2 * config.shift
    check_fits(
        20 * config.classes * wide**2 * config.channels,
        f"prototypes of {config.classes} classes, {wide}×{wide}×{config.channels}",
    )
    grid = np.random.default_rng([config.seed, 0]).random(
        (config.classes, 4, 4, config.channels), np.float32
    )
    # Bilinear interpolation of a 4×4 grid is linear in the grid: [wide, 4] weights for each axis.
    weights = np.stack(
        [np.interp(np.linspace(0, 3, wide), np.arange(4), unit) for unit in np.eye(4)], axis=1
    )
    prototypes = np.einsum("hi,wj,kijc->khwc", weights, weights, grid).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(
        prototypes, (config.size, config.size), axis=(1, 2)
    )

    def draw(count: int, stream: int) -> Arrays:
        rng = np.random.default_rng([config.seed, stream])
        labels = rng.permutation(np.arange(count) % config.classes)
        images = np.empty((count, config.size, config.size, config.channels), np.uint8)
        for start in range(
            0, count, 1000
        ):  # a float32 copy of everything would be four times the data
            block = labels[start : start + 1000]
            down, right = rng.integers(0, 2 * config.shift + 1, (2, len(block)))
            clean = np.moveaxis(windows[block, down, right], 1, -1)
            noise = rng.integers(0, 256, clean.shape, np.uint8) - np.float32(
                127.5
            )  # an eighth of the cost of normal noise
            noisy = (
                255 * clean + 255 * config.noise / 73.9 * noise
            )  # 73.9: the standard deviation of 0..255
            images[start : start + 1000] = np.rint(np.clip(noisy, 0, 255))
        return images, labels

    classes = [str(label) for label in range(config.classes)]
    return from_arrays(
        draw(config.train, 1),
        draw(config.test, 2),
        name="synthetic",
        classes=classes,
        crop=config.shift,
    )
