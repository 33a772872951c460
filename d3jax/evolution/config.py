"""The settings of an evolution: how often a model is updated, on what and with which rates."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ..config.fields import check_fields, option
from ..core.errors import ConfigError
from ..data.drift import check_kinds
from .lr_schedules import LRScheduleConfig


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """How a model evolves.

    `drift` maps a kind of drift to the strength that each update adds; `label_shift` adds to the exponent of the class weights. Fresh images are poisoned by the trigger that the attacker
    has at test time: LC's without its perturbation.
    """

    updates: int = option(10, "updates, each on a fresh set", low=1)
    validation: float = option(
        0.1,
        "share of every fresh set that is not learned: clean images to choose rates by",
        low=0,
        high=0.5,
    )
    epochs: int = option(10, "passes over the fresh set in an update", low=1)
    batch_size: int = option(128, "images a step; the last short batch of a pass is dropped", low=1)
    strategy: LRScheduleConfig = option(
        LRScheduleConfig, "learning rates within an update, restarted at each"
    )
    drift: dict[str, float] = option(
        dict,
        "strength that each update adds: rotation (degrees), hue (turns), brightness and contrast (factor less 1), noise (standard deviation "
        "of values in [0, 1]), blur (pixels)",
    )
    label_shift: float = option(0.0, "what each update adds to the exponent of the class weights")
    trigger_first: bool = option(False, "the trigger is pasted before the drift, not after it")
    persistent: float = option(
        0.0, "share of every fresh set that is poisoned (0: one-shot)", low=0, high=1
    )
    replay: float = option(
        0.0, "share of every batch that comes from the first set, poison and all", low=0, high=1
    )
    optimizer_state: Literal["reset", "carried"] = option(
        "reset", "momentum at the start of an update"
    )
    learn: Literal["all", "statistics", "parameters"] = option(
        "all",
        "statistics: only BatchNorm's running ones move; parameters: all else does, and these normalise",
    )
    augment: Literal["auto", "none"] = option(
        "auto", "auto: the crop and flip that the data set allows"
    )
    momentum: float = option(0.9, "SGD momentum", low=0, high=1)
    weight_decay: float = option(5e-4, "coupled L2", low=0)
    defense: str | None = option(
        None, "label of the entry of `defenses` that is called after updates (null: none)"
    )
    every: int = option(1, "updates from one call of the defence to the next", low=1)
    calls: int = option(0, "how often it is called (0: to the end)", low=0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_kinds(self.drift)
        for kind in {"noise", "blur"} & set(self.drift):
            if self.drift[kind] < 0:
                raise ConfigError(f"drift: {kind}: {self.drift[kind]:g} is out of range, want ≥ 0")
        for name in ("every", "calls"):
            if not self.defense and getattr(self, name) != getattr(EvolutionConfig, name):
                raise ConfigError(
                    f"{name}: {getattr(self, name)} says how often a defence is called, and there is no defense"
                )

    @property
    def program(self) -> tuple[Any, ...]:
        """What of it is part of the compiled program: lineages that agree in it can run as members of one."""
        static = (
            self.updates,
            self.validation,
            self.epochs,
            self.batch_size,
            tuple(self.drift),
            self.trigger_first,
            self.replay,
        )
        return (
            *static,
            self.optimizer_state,
            self.learn == "parameters",
            self.augment,
            self.momentum,
            self.weight_decay,
        )


EVOLUTIONS = {"evolution": EvolutionConfig}
"""`EVOLUTIONS[name] = config class`."""
