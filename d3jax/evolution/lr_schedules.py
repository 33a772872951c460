"""Learning-rate schedules of an update of an evolving model, as arrays with one rate per step.

A schedule restarts at every update. Li et al. (arXiv 2206.04677) find that a smart schedule makes a
model forget a backdoor in a single update. Schedules are arrays and not functions, so that runs
with different schedules can be members of one compiled program.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import optax
from jaxtyping import Float32

from ..config.fields import check_fields, check_foreign, option
from ..core.errors import ConfigError

Name = Literal["constant", "cosine", "onecycle", "slanted", "cyclical", "sgdr", "super"]


OWNERS = {"low": ("cyclical", "super"), "cycles": ("cyclical", "sgdr"), "growth": ("sgdr",)}
OWNERS |= {
    "cut": ("slanted",),
    "ratio": ("slanted",),
    "lr2": ("super",),
    "first": ("super",),
    "ramp": ("super",),
}
"""For each setting that not all schedules have: the schedules that have it."""


@dataclasses.dataclass(frozen=True)
class LRScheduleConfig:
    """Settings of a learning-rate schedule within one update of an evolving model.

    `lr` is its highest rate. `mean` rescales the schedule to this mean over an update, for
    comparisons at equal Σ lr.

    - `slanted` is the slanted triangle of Howard & Ruder (2018).
    - `cyclical` is the triangle of Smith (2017).
    - `sgdr` is cosines with warm restarts (Loshchilov & Hutter 2017).
    - `super` is super-fine-tuning (Sha et al., arXiv 2212.09067). Triangles up to `lr` in 40 % of
      the steps make the model forget. Then triangles up to `lr2` make it recover.
    """

    name: Name = option("constant", "shape of the schedule within an update")
    lr: float = option(0.01, "highest learning rate", above=0)
    mean: float | None = option(
        None, "rescale the schedule to this mean (null: do not rescale)", above=0
    )
    low: float = option(3e-4, "lowest rate of cyclical and super", low=0)
    cycles: int = option(4, "number of cycles of cyclical and sgdr", low=1)
    growth: int = option(
        1, "factor by which a cycle of sgdr is longer than the one before (T_mult)", low=1
    )
    cut: float = option(0.1, "share of the steps in which slanted rises", above=0, high=1)
    ratio: float = option(32.0, "ratio of the highest to the lowest rate of slanted", low=1)
    lr2: float = option(1e-3, "highest rate of super's second phase", above=0)
    first: float = option(0.4, "share of the steps in super's first phase", low=0, high=1)
    ramp: int = option(10, "steps in which a triangle of super rises; it falls in as many", low=1)

    def __post_init__(self) -> None:
        check_fields(self)
        check_foreign(self, "name", OWNERS)
        tops = {"cyclical": ("lr",), "super": ("lr", "lr2")}.get(self.name, ())
        for name in tops:
            if self.low > getattr(self, name):
                raise ConfigError(f"low: {self.low:g} is above {name}: {getattr(self, name):g}")


def rates(config: LRScheduleConfig, steps: int) -> Float32[np.ndarray, " steps"]:
    """Return the learning rates [steps] of one update of an evolving model, by `LRScheduleConfig`.

    They are float32.

    Raises `ConfigError` where a cycle or a triangle has too few steps to reach its highest rate.
    """
    if config.name == "cyclical" and 2 * config.cycles > steps:
        raise ConfigError(f"cycles: {config.cycles} do not fit an update of {steps} steps")
    at = np.arange(steps)
    if config.name in ("constant", "cosine", "onecycle", "sgdr"):
        values = np.array([float(np.asarray(_schedule(config, steps)(step))) for step in at])
    elif config.name == "slanted":
        top = max(1, int(steps * config.cut))
        share = np.where(at < top, at / top, 1 - (at - top) / max(steps - top, 1))
        values = config.lr * (1 + share * (config.ratio - 1)) / config.ratio
    elif config.name == "cyclical":
        values = _triangles(at, steps / (2 * config.cycles), config.low, config.lr)
    else:
        border = round(config.first * steps)
        for which, part in (("first", border), ("second", steps - border)):
            if 0 < part <= config.ramp:
                raise ConfigError(
                    f"ramp: {config.ramp} steps up do not fit the {part} steps "
                    f"of super's {which} phase"
                )
        phases = ((at[:border], config.lr), (at[border:] - border, config.lr2))
        values = np.concatenate(
            [_triangles(part, config.ramp, config.low, high) for part, high in phases]
        )
    if config.mean is not None:
        values = values * (config.mean / values.mean())
    return values.astype(np.float32)


def _schedule(config: LRScheduleConfig, steps: int) -> optax.Schedule:
    if config.name == "constant":
        return optax.constant_schedule(config.lr)
    if config.name == "cosine":
        return optax.cosine_decay_schedule(config.lr, steps)
    if config.name == "onecycle":
        return optax.cosine_onecycle_schedule(steps, config.lr)
    shares = np.cumsum([0.0, *(float(config.growth) ** i for i in range(config.cycles))])
    borders = np.round(steps * shares / shares[-1]).astype(int)
    if np.diff(borders).min() < 1:
        growing = (
            f", each {config.growth} times as long as the one before," if config.growth > 1 else ""
        )
        raise ConfigError(f"cycles: {config.cycles}{growing} do not fit an update of {steps} steps")
    cosines = [optax.cosine_decay_schedule(config.lr, int(length)) for length in np.diff(borders)]
    return optax.join_schedules(cosines, borders[1:-1].tolist())


def _triangles(at: np.ndarray, half: float, low: float, high: float) -> np.ndarray:
    """Return learning rates that rise from `low` to `high` in `half` steps and fall, repeatedly."""
    place = np.mod(at / half, 2)
    return low + (high - low) * (1 - np.abs(place - 1))
