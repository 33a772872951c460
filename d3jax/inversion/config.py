"""The settings of trigger inversion and their presets."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..config.fields import check_fields, option, presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Settings of trigger inversion, which searches for the smallest trigger of each class.

    They are a preset, and the values that differ from it. The cost is the weight of the trigger's
    size in the loss. It is adapted after every pass.

    - `nc`: Neural Cleanse's mask and pattern through tanh, with its official schedule (Wang et al.,
      2019).
    - `fixed`: mask and pattern themselves, clipped, at a fixed cost. The last trigger is kept (the
      first MCL code).
    - `pixel`: two additive patterns, one up and one down, with a smooth count of the pixels that
      they change. It uses only images of other classes (Tao et al., CVPR 2022; the second MCL
      code). Its early stop is d3jax's addition.
    """

    preset: Literal["nc", "fixed", "pixel"] = option(
        "nc", "form of the trigger; it also sets the default of every other field"
    )
    passes: int = option(1000, "largest number of passes", low=1)
    batch_size: int = option(32, "images per step", low=1)
    batches: int = option(31, "steps per pass (0: all images once)", low=0)
    lr: float = option(0.1, "Adam's learning rate", above=0)
    b1: float = option(0.5, "decay of Adam's first moment", low=0, high=1)
    b2: float = option(0.9, "decay of Adam's second moment", low=0, high=1)
    threshold: float = option(
        0.99,
        "success rate over a pass that a trigger needs to be kept; "
        "images of the class itself count, except for pixel",
        low=0,
        high=1,
    )
    cost: float = option(1e-3, "initial cost: the weight of the trigger's size in the loss", low=0)
    wait: bool = option(
        True, "keep the cost at 0 until `patience` passes in a row reach the threshold"
    )
    patience: int = option(
        5,
        "passes in a row at the threshold that raise the cost, or below it that lower the cost "
        "(0: never change it)",
        low=0,
    )
    up: float = option(2.0, "factor by which the cost rises", low=1)
    down: float = option(2**1.5, "divisor by which the cost falls", low=1)
    stop: int = option(
        25, "passes without a smaller trigger after which a class is done (0: never)", low=0
    )

    def __post_init__(self) -> None:
        check_fields(self)


PRESETS = presets(
    "preset",
    InversionConfig(preset="nc"),
    InversionConfig(
        preset="fixed",
        lr=0.005,
        b1=0.9,
        b2=0.999,
        batches=0,
        threshold=0.0,
        cost=0.01,
        wait=False,
        patience=0,
        stop=30,
    ),
    InversionConfig(
        preset="pixel",
        batches=0,
        threshold=0.9,
        wait=False,
        patience=10,
        up=1.5,
        down=1.5**1.5,
        stop=50,
    ),
)
