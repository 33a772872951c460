"""The configuration of a study, and the checks that concern several of its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from ..core.errors import did_you_mean, names, refuse
from .fields import check_fields, option, section
from .recipes import LoopConfig, ReservedConfig, TrainConfig

KEPT = ("none", "train", "read", "trigger")
"""Labels that are reserved for rows and folders of the backdoored model itself."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The choice of one attack, defence, model or other component by `name`, with its settings.

    `name` is the name in the registry, `label` the name in the results, and `config` holds the
    settings. The other fields are for an external model, which an attack or the model names.
    `checkpoint` is its file or folder, or its address on the shelf of victims. `checkpoint_key` is
    the key of its state dict if the file has several. `ignore` has globs of tensors to leave out.
    """

    name: str
    label: str
    config: Any
    checkpoint: str = ""
    checkpoint_key: str = ""
    ignore: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings of a study: all attacks × defences × seeds on one data set and one architecture."""

    dataset: Choice = section("datasets", "digits", "the data set")
    model: Choice = section("models", "preact_resnet18", "the architecture")
    attacks: tuple[Choice, ...] = section("attacks", ["badnets"], "the attacks")
    defenses: tuple[Choice, ...] = section(
        "defenses", ["finetune", "d3"], "the defences applied to every backdoored model"
    )
    evolutions: tuple[Choice, ...] = section(
        "evolutions", [], "the evolution runs that update every model on fresh data"
    )
    detections: tuple[Choice, ...] = section(
        "detections", [], "the detectors applied to every model"
    )
    evaluations: tuple[Choice, ...] = section(
        "evaluations", [], "further measurements of every backdoored and repaired model"
    )
    reserved_from: tuple[Choice, ...] = section(
        "datasets", [], "the data sets whose training images are reserved, instead of the study's"
    )
    train: TrainConfig = option(TrainConfig, "training of the backdoored model")
    fresh: float = option(
        0.0, "share of the training images set aside for evolutions", low=0, high=0.95
    )
    measured: int = option(0, "test images on which every update is measured (0: all)", low=0)
    reserved: ReservedConfig = option(ReservedConfig, "the clean images that the defender has")
    seeds: tuple[int, ...] = option(
        (0,), "seeds; everything is run once per seed", low=0, high=2**32 - 1
    )
    attack_seed: int | None = option(
        None, "train one backdoored model with this seed for all seeds", low=0, high=2**32 - 1
    )
    scored: int = option(
        0,
        "training images, drawn at random, that sample detectors score (0: all); their models are "
        "trained on all",
        low=0,
    )
    precision: Literal["auto", "float32", "tensorfloat32", "bfloat16"] = option(
        "auto",
        "precision of convolutions and matrix products; auto: bfloat16 on GPU and TPU, float32 on "
        "CPU, where bfloat16 is faster if the CPU has AMX; tensorfloat32: that of NVIDIA GPUs, "
        "float32 elsewhere",
    )
    features: int = option(
        0,
        "number of test images, of all classes, whose clean and triggered features the report "
        "shows (0: none)",
        low=0,
    )
    paths: int = option(
        0,
        "points on each line through a backdoored model and a repaired one at which the report "
        "shows the losses (0: none)",
        low=0,
    )
    loop: LoopConfig = option(
        LoopConfig, "how train loops run: logging, checkpoints, steps per call"
    )
    cache: str = option(
        "", "folder for backdoored models shared between studies (empty: inside the run folder)"
    )
    published: dict[str, str] = option(
        dict, "published numbers to show in the rows of the table, by 'attack/defense'"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_labels(self)
        check_rows(self)


def check_labels(study: StudyConfig) -> None:
    """Raise `ConfigError` if a study lacks attacks or seeds, or if its labels are not unique."""
    refuse(not study.attacks, "attacks: is empty, a study needs at least one")
    refuse(not study.seeds, "seeds: is empty, a study needs at least one")
    refuse(_repeated(study.seeds), f"seeds: {list(study.seeds)} names a seed twice")
    for name in ("attacks", "defenses", "detections", "evaluations", "evolutions"):
        twice = _repeated(_labels(getattr(study, name)))
        refuse(twice, f"{name}: {names(twice)} appears twice; give each its own `label:`")
    labels = _labels((*study.defenses, *study.evolutions))
    both, kept = names(_repeated(labels)), names(label for label in KEPT if label in labels)
    refuse(
        both, f"evolutions: {both} is a label of defenses too; give one of them another `label:`"
    )
    refuse(kept, f"defenses: the label {kept} is kept for the backdoored model itself")


def check_rows(study: StudyConfig) -> None:
    """Raise `ConfigError` if a study's evolutions or published numbers name what is not there.

    An evolution may only name a defence of the study, and needs fresh images. Published numbers
    of a study without defences or evolutions are not checked. Such a study may be the first half
    of one that has those rows.
    """
    known = _labels(study.defenses)
    for label, called in ((each.label, each.config.defense) for each in study.evolutions):
        refuse(
            called not in (None, *known),
            f"evolutions: {label}: defense: {called!r} is not a label of `defenses`; the labels "
            f"are {names(known) or 'none'}{did_you_mean(called, known)}",
        )
    starved = study.evolutions and not study.fresh
    refuse(starved, "fresh: 0 leaves no images for evolutions; a usual value is 0.6")
    rows = rows_of(study.attacks, study.defenses, study.evolutions)
    for row in study.published if known or study.evolutions else ():
        refuse(
            row not in rows,
            f"published.{row}: no such row; rows are {names(rows)}{did_you_mean(row, rows)}",
        )


def rows_of(
    attacks: Sequence[Choice], defenses: Sequence[Choice], evolutions: Sequence[Choice]
) -> list[str]:
    """Return the rows that a study's table has, as 'attack/defense'."""
    after = ("none", *_labels(defenses), *_labels(evolutions))
    return [f"{attack.label}/{label}" for attack in attacks for label in after]


def _labels(choices: Sequence[Choice]) -> list[str]:
    return [choice.label for choice in choices]


def _repeated(items: Sequence[Any]) -> list[Any]:
    return sorted({item for item in items if items.count(item) > 1})
