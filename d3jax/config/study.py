"""The configuration of a study. No jax in here."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ..core.errors import ConfigError
from .fields import check_fields, did_you_mean, names, option, section
from .recipes import LoopConfig, ReservedConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Choice:
    """One entry of a registry with its settings: `name` in the registry, `label` in the results, `config`. A model that was trained
    elsewhere has the file or folder of its `checkpoint`."""

    name: str
    label: str
    config: Any
    checkpoint: str = ""


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study: every attack × every defence × every seed on one data set and one model."""

    dataset: Choice = section("datasets", "digits", "the images")
    model: Choice = section("models", "preact_resnet18", "the architecture")
    attacks: tuple[Choice, ...] = section("attacks", ("badnets",), "the attacks")
    defenses: tuple[Choice, ...] = section(
        "defenses", ("finetune", "d3"), "the defences tried on every attack"
    )
    evolutions: tuple[Choice, ...] = section(
        "evolutions", (), "how every model is updated on fresh data"
    )
    detections: tuple[Choice, ...] = section(
        "detections", (), "how every model is looked at for a backdoor"
    )
    train: TrainConfig = option(TrainConfig, "training of the backdoored model")
    fresh: float = option(
        0.0, "share of the training images kept back for evolutions", low=0, high=0.95
    )
    measured: int = option(0, "test images measured after every update (0: all)", low=0)
    reserved: ReservedConfig = option(ReservedConfig, "the defender's clean images")
    seeds: tuple[int, ...] = option((0,), "one run of everything per seed", low=0, high=2**32 - 1)
    attack_seed: int | None = option(
        None, "train one backdoored model with this seed for all seeds", low=0, high=2**32 - 1
    )
    precision: Literal["auto", "float32", "tensorfloat32", "bfloat16"] = option(
        "auto",
        "of convolutions and products; auto: bfloat16 on GPU and TPU, float32 on CPU; tensorfloat32: NVIDIA's, float32 elsewhere",
    )
    features: int = option(
        0,
        "test images of all classes whose features, clean and triggered, the report shows (0: none)",
        low=0,
    )
    paths: int = option(
        0,
        "points on the line from each backdoored model through its repaired ones, for the report (0: none)",
        low=0,
    )
    loop: LoopConfig = option(LoopConfig, "logging, checkpoints, steps per call")
    cache: str = option(
        "", "folder for backdoored models shared between studies (empty: inside the run folder)"
    )
    published: dict[str, str] = option(
        dict, "the published number beside a row, by 'attack/defense'"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name, values in (("attacks", self.attacks), ("seeds", self.seeds)):
            if not values:
                raise ConfigError(f"{name}: is empty, a study needs at least one")
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds: {list(self.seeds)} names a seed twice")
        for name in ("attacks", "defenses", "detections", "evolutions"):
            labels = [choice.label for choice in getattr(self, name)]
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise ConfigError(
                    f"{name}: {names(twice)} stands twice; give each its own `label:`"
                )
        both = {choice.label for choice in self.defenses} & {
            choice.label for choice in self.evolutions
        }
        if both:
            raise ConfigError(
                f"evolutions: {names(sorted(both))} is a label of defenses too; give one another `label:`"
            )
        for evolution in self.evolutions:
            called, known = evolution.config.defense, [choice.label for choice in self.defenses]
            if called is not None and called not in known:
                raise ConfigError(
                    f"evolutions: {evolution.label}: defense: {called!r} is no label of `defenses`, which are "
                    f"{names(known) or 'none'}{did_you_mean(called, known)}"
                )
        if self.evolutions and not self.fresh:
            raise ConfigError("fresh: 0 leaves no images for evolutions; usual is 0.6")
        kept = {"none", "train", "read", "trigger"} & {
            choice.label for choice in (*self.defenses, *self.evolutions)
        }
        if kept:
            raise ConfigError(
                f"defenses: the label {names(kept)} is kept for the backdoored model itself"
            )
        cells = [
            f"{a.label}/{d}"
            for a in self.attacks
            for d in ("none", *(d.label for d in (*self.defenses, *self.evolutions)))
        ]
        for cell in (
            self.published if self.defenses or self.evolutions else ()
        ):  # without them it is the first half of some study
            if cell not in cells:
                raise ConfigError(
                    f"published.{cell}: no such row; rows are {names(cells)}{did_you_mean(cell, cells)}"
                )
