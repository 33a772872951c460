"""The settings of an evolution run: how often a model is updated, on what data, at what rates."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ..config.fields import check_fields, option
from ..core.errors import ConfigError
from ..data.drift import check_kinds
from .lr_schedules import LRScheduleConfig


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """Settings of an evolution run, in which a model is updated again and again on fresh data.

    `drift` maps a kind of drift to the strength that each update adds. `label_shift` adds to the
    exponent of the class weights. Fresh images are poisoned by the trigger that the attacker has at
    test time. For LC, that is the trigger without its perturbation.
    """

    updates: int = option(10, "number of updates, each on a fresh set", low=1)
    validation: float = option(
        0.1,
        "share of every fresh set that is held out: clean images to choose learning rates by",
        low=0,
        high=0.5,
    )
    epochs: int = option(10, "passes over the fresh set per update", low=1)
    batch_size: int = option(128, "images per step; a short last batch is dropped", low=1)
    strategy: LRScheduleConfig = option(
        LRScheduleConfig, "learning-rate schedule within an update, restarted at each update"
    )
    drift: dict[str, float] = option(
        dict,
        "strength that each update adds, by kind: rotation (degrees), hue (turns of the colour "
        "circle), brightness and contrast (factor minus 1), noise (standard deviation of values in "
        "[0, 1]), blur (pixels)",
    )
    label_shift: float = option(
        0.0, "amount that each update adds to the exponent of the class weights"
    )
    trigger_first: bool = option(False, "stamp the trigger before the drift instead of after it")
    persistent: float = option(
        0.0,
        "share of every fresh set that is poisoned (0: one-shot, no fresh set is)",
        low=0,
        high=1,
    )
    replay: float = option(
        0.0,
        "share of every batch from the first training set, poisoned samples included",
        low=0,
        high=1,
    )
    optimizer_state: Literal["reset", "carried"] = option(
        "reset", "momentum at the start of an update: reset to 0, or carried over"
    )
    learn: Literal["all", "statistics", "parameters"] = option(
        "all",
        "all: everything is trained; statistics: only BatchNorm's running statistics change; "
        "parameters: only the parameters change, normalised by the running statistics",
    )
    augment: Literal["auto", "none"] = option(
        "auto", "auto: the random crop and flip that the data set allows; none: no augmentation"
    )
    momentum: float = option(0.9, "SGD momentum", low=0, high=1)
    weight_decay: float = option(5e-4, "coupled L2 weight decay", low=0)
    defense: str | None = option(
        None, "label of the entry of `defenses` that is called after updates (null: none)"
    )
    every: int = option(1, "number of updates from one call of the defence to the next", low=1)
    calls: int = option(0, "number of calls of the defence (0: until the last update)", low=0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_kinds(self.drift)
        for kind in {"noise", "blur"} & set(self.drift):
            if self.drift[kind] < 0:
                raise ConfigError(f"drift: {kind}: {self.drift[kind]:g} is out of range, want ≥ 0")
        for name in ("every", "calls"):
            if not self.defense and getattr(self, name) != getattr(EvolutionConfig, name):
                raise ConfigError(
                    f"{name}: {getattr(self, name)} says how often a defence is called, "
                    "and there is no defense"
                )

    @property
    def program(self) -> tuple[Any, ...]:
        """Return the tuple of those settings that are compiled into an evolution run's program.

        Evolution runs that agree in them can run as members of one program.
        """
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
"""The registry of evolutions: `EVOLUTIONS[name]` is the config class."""
