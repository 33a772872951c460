"""The configuration of a study. No jax in here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from ..core.errors import did_you_mean, names, refuse
from .fields import check_fields, option, section
from .recipes import LoopConfig, ReservedConfig, TrainConfig

KEPT = ("none", "train", "read", "trigger")
"""Labels of rows and folders of the backdoored model itself."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One entry of a registry: `name` there, `label` in the results, `config` with its settings.

    A model that was trained elsewhere has the file or folder of its `checkpoint`, the key of its
    state dict in it where there are several, and globs of the tensors to `ignore`.
    """

    name: str
    label: str
    config: Any
    checkpoint: str = ""
    checkpoint_key: str = ""
    ignore: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study: every attack × every defence × every seed on one data set and one model."""

    dataset: Choice = section("datasets", "digits", "the images")
    model: Choice = section("models", "preact_resnet18", "the architecture")
    attacks: tuple[Choice, ...] = section("attacks", ["badnets"], "the attacks")
    defenses: tuple[Choice, ...] = section(
        "defenses", ["finetune", "d3"], "the defences tried on every attack"
    )
    evolutions: tuple[Choice, ...] = section(
        "evolutions", [], "how every model is updated on fresh data"
    )
    detections: tuple[Choice, ...] = section(
        "detections", [], "how every model is searched for a backdoor"
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
        "of convolutions and products; auto: bfloat16 on GPU and TPU, float32 on CPU; "
        "tensorfloat32: NVIDIA's, float32 elsewhere",
    )
    features: int = option(
        0,
        "test images of all classes whose features, clean and triggered, the report shows "
        "(0: none)",
        low=0,
    )
    paths: int = option(
        0,
        "points on the line from each backdoored model through its repaired ones, for the report "
        "(0: none)",
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
        check_labels(self)
        check_rows(self)


def check_labels(study: StudyConfig) -> None:
    """Check that a study has attacks and seeds, and that no two of its rows have one label."""
    refuse(not study.attacks, "attacks: is empty, a study needs at least one")
    refuse(not study.seeds, "seeds: is empty, a study needs at least one")
    refuse(_repeated(study.seeds), f"seeds: {list(study.seeds)} names a seed twice")
    for name in ("attacks", "defenses", "detections", "evolutions"):
        twice = _repeated(_labels(getattr(study, name)))
        refuse(twice, f"{name}: {names(twice)} stands twice; give each its own `label:`")
    labels = _labels((*study.defenses, *study.evolutions))
    both, kept = names(_repeated(labels)), names(label for label in KEPT if label in labels)
    refuse(both, f"evolutions: {both} is a label of defenses too; give one another `label:`")
    refuse(kept, f"defenses: the label {kept} is kept for the backdoored model itself")


def check_rows(study: StudyConfig) -> None:
    """Check the images and the defences of evolutions, and that published numbers belong to rows.

    A study without defences may be the first half of one that has those rows.
    """
    known = _labels(study.defenses)
    for label, called in ((each.label, each.config.defense) for each in study.evolutions):
        refuse(
            called not in (None, *known),
            f"evolutions: {label}: defense: {called!r} is no label of `defenses`, which are "
            f"{names(known) or 'none'}{did_you_mean(called, known)}",
        )
    starved = study.evolutions and not study.fresh
    refuse(starved, "fresh: 0 leaves no images for evolutions; usual is 0.6")
    after = [*known, *_labels(study.evolutions)]
    rows = [f"{attack.label}/{label}" for attack in study.attacks for label in ("none", *after)]
    for row in study.published if after else ():
        refuse(
            row not in rows,
            f"published.{row}: no such row; rows are {names(rows)}{did_you_mean(row, rows)}",
        )


def _labels(choices: Sequence[Choice]) -> list[str]:
    return [choice.label for choice in choices]


def _repeated(items: Sequence[Any]) -> list[Any]:
    return sorted({item for item in items if items.count(item) > 1})
