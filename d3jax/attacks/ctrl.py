"""The CTRL attack: raised DCT coefficients, clean labels (Li et al. 2023, arXiv 2210.07346)."""

from __future__ import annotations

import dataclasses

from ..core.types import Attack, DataInfo
from .frequency import (
    YUV_TO_RGB,
    channels_option,
    check_settings,
    frequency_trigger,
    magnitude_option,
    positions_option,
    window_option,
)
from .poisoning import RateOf, clean_label, rate_of_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class CTRLConfig:
    """Settings of the CTRL attack, which adds two waves to the chroma of target-class images.

    By default 100 is added to two DCT coefficients of U and V, in windows of 32×32 pixels. The
    poisoned images make up 5 % of the training set.
    """

    rate: float = rate_option(0.05)
    rate_of: RateOf = rate_of_option()
    target: int | str = target_option()
    window: int = window_option()
    positions: tuple[tuple[int, ...], ...] = positions_option()
    channels: tuple[int, ...] = channels_option("U", "V")
    magnitude: float = magnitude_option(100.0)

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the CTRL attack with these settings for the data set that `info` describes."""
        return make_ctrl(self, info)


def make_ctrl(config: CTRLConfig, info: DataInfo) -> Attack:
    """Return the CTRL `Attack`, which adds waves of some frequencies to target-class images.

    The 8-bit image is converted to YUV. In each window of `channels`, the `magnitude` is added to
    the coefficients `positions` of the orthonormal DCT-II. The result is converted back to RGB,
    clipped and rounded. This is x + offset, see `frequency_trigger`. The trigger is
    `{"offset": [H, W, C] int32}`.

    The magnitude acts on 8-bit levels: published code multiplies images in [0, 1] by 255 first. A
    coefficient of 100 has an amplitude of up to 100 · 2 / 32 = 6.25 levels of U or V. With
    `channels` [0], the waves are added to the levels of grey images.

    Deviations: the colour factors are OpenCV's, as for FTrojan. The authors use kornia's, which
    differ in the third digit and give the same offset to 0.04 levels. They do not round to 8 bits,
    and BackdoorBench truncates; here levels are rounded to the nearest. BackdoorBench takes a
    window as large as the image, which is the same for 32×32 images. The authors attack
    self-supervised training, at a rate of 1 %. The rate here is that of BackdoorBench, for
    supervised training.

    Raises `AttackError` as `frequency.offset` does.
    """
    init, stamp = frequency_trigger(config, info, YUV_TO_RGB)
    return clean_label(config, info, init=init, stamp=stamp)
