"""The FTrojan attack: raised DCT coefficients (Wang et al. 2021, arXiv 2111.10991)."""

from __future__ import annotations

import dataclasses

from ..core.types import Attack, DataInfo
from .frequency import (
    YCRCB_TO_RGB,
    channels_option,
    check_settings,
    frequency_trigger,
    magnitude_option,
    positions_option,
    window_option,
)
from .poisoning import Mode, Target, dirty_label, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class FTrojanConfig:
    """Settings of the FTrojan attack, which adds two waves to the chroma of the image.

    By default 30 is added to two DCT coefficients of Cr and Cb, in windows of 32×32 pixels. The
    poisoned images make up 10 % of the training set.
    """

    rate: float = rate_option()
    target: Target = target_option(mapping=True)
    mode: Mode = mode_option()
    window: int = window_option()
    positions: tuple[tuple[int, ...], ...] = positions_option()
    channels: tuple[int, ...] = channels_option("Cr", "Cb")
    magnitude: float = magnitude_option(30.0)

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the FTrojan attack with these settings for the data set that `info` describes."""
        return make_ftrojan(self, info)


def make_ftrojan(config: FTrojanConfig, info: DataInfo) -> Attack:
    """Return the FTrojan `Attack`, which adds waves of some frequencies to the image.

    The 8-bit image is converted to YCrCb. In each window of `channels`, the `magnitude` is added to
    the coefficients `positions` of the orthonormal DCT-II. The result is converted back to RGB,
    clipped and rounded. This is x + offset, see `frequency_trigger`. The trigger is
    `{"offset": [H, W, C] int32}`.

    Grey images have no chroma. With `channels` [0], the waves are added to the grey levels.

    Deviations: nothing is rounded between the steps. The authors and BackdoorBench round YCrCb to 8
    bits before the DCT, and truncate it after the inverse DCT. On average that truncation lowers R
    by 0.7 and B by 0.9 levels, and raises G by 0.5. It is not reproduced, because Y stays a whole
    number, and whether it loses a level depends on rounding errors of the DCT. The authors poison
    5 % of the set, and no images of the target class. The rate of 10 % over all classes is that of
    BackdoorBench.

    Raises `AttackError` as `frequency.offset` does.
    """
    init, stamp = frequency_trigger(config, info, YCRCB_TO_RGB)
    return dirty_label(config, info, init=init, stamp=stamp)
