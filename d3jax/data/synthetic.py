"""The data set of generated images: any size, any number of classes, no download."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..config.fields import check_fields, option
from ..core.types import Dataset
from ..runtime.main_memory import check_fits
from .arrays import Arrays, from_arrays


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Settings of a data set of generated images of any size.

    Each image is the smooth random prototype of its class, shifted by a few pixels, plus noise.
    """

    size: int = option(16, "height and width in pixels", low=4)
    channels: int = option(3, "number of channels", low=1)
    classes: int = option(10, "number of classes", low=2)
    train: int = option(2000, "number of training images", low=1)
    test: int = option(500, "number of test images", low=1)
    noise: float = option(0.1, "standard deviation of the uniform noise, in [0, 1] units", low=0)
    shift: int = option(1, "largest shift of a prototype in each direction, in pixels", low=0)
    seed: int = option(0, "seed of the images: the same seed gives the same images", low=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> Dataset:
        """Generate the synthetic images of a data set with these settings."""
        return make_synthetic(self)


def make_synthetic(config: SyntheticConfig) -> Dataset:
    """Generate a `Dataset` of synthetic images [size, size, channels] with balanced classes.

    The classes are balanced to within one image. 60,000 images of 32×32×3 take a few seconds.
    Raises `ConfigError` where the images do not fit in main memory.
    """
    pixels = config.size**2 * config.channels
    check_fits(
        (config.train + config.test) * (pixels + 16),
        f"{config.train} training and {config.test} test images of "
        f"{config.size}×{config.size}×{config.channels}",
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
        # In blocks, because a float32 copy of all images would be four times the data.
        for start in range(0, count, 1000):
            block = labels[start : start + 1000]
            down, right = rng.integers(0, 2 * config.shift + 1, (2, len(block)))
            clean = np.moveaxis(windows[block, down, right], 1, -1)
            # Uniform noise has an eighth of the cost of normal noise.
            noise = rng.integers(0, 256, clean.shape, np.uint8) - np.float32(127.5)
            # 73.9 is the standard deviation of the integers 0..255.
            noisy = 255 * clean + 255 * config.noise / 73.9 * noise
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
