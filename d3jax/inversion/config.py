"""The settings of trigger inversion, and their presets."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..config.fields import check_fields, option, presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """A preset and what departs from it. The cost, the weight of the trigger's size in the loss, is adapted after every pass.

    `nc`: Neural Cleanse's mask and pattern through tanh, with its official schedule (Wang et al., 2019). `fixed`: raw mask and pattern,
    clipped, at a fixed cost; the last trigger is kept (the first MCL code). `pixel`: two additive patterns, one up and one down, with a
    smooth count of the pixels they change, on images of other classes only (Tao et al., CVPR 2022; the second MCL code); that it
    stops early is ours.
    """

    preset: Literal["nc", "fixed", "pixel"] = option(
        "nc", "what is searched, and where all below comes from unless given"
    )
    passes: int = option(1000, "passes at most", low=1)
    batch_size: int = option(32, "images a step", low=1)
    batches: int = option(31, "steps a pass (0: all images once)", low=0)
    lr: float = option(0.1, "Adam's learning rate", above=0)
    b1: float = option(0.5, "decay of its first moment", low=0, high=1)
    b2: float = option(0.9, "decay of its second moment", low=0, high=1)
    threshold: float = option(
        0.99,
        "share of a pass's images that a trigger must turn to be kept; but for pixel the class's own images count",
        low=0,
        high=1,
    )
    cost: float = option(1e-3, "the first cost", low=0)
    wait: bool = option(
        True, "the cost is 0 until `patience` passes in a row were at the threshold"
    )
    patience: int = option(
        5,
        "so many passes in a row at the threshold raise the cost, so many below lower it (0: never)",
        low=0,
    )
    up: float = option(2.0, "factor of the cost when it rises", low=1)
    down: float = option(2**1.5, "divisor of the cost when it falls", low=1)
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
