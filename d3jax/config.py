"""Configuration as frozen dataclasses whose defaults are the papers' recipes. No jax in here.

A value outside its declared range or choices raises `ConfigError` when the dataclass is made, from YAML or by hand.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from .errors import ConfigError


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    member: bool = False,
) -> Any:
    """A config field with its meaning and its allowed range: low ≤ value ≤ high, value > above.

    `member` marks a number that reaches the compiled program as an array, so that runs which differ in it (but not in whether
    it is 0) are members of one program.
    """
    bounds = {name: bound for name, bound in (("low", low), ("high", high), ("above", above)) if bound is not None}
    metadata = {"doc": doc, "member": member, **bounds}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(registry: str, default: Any, doc: str) -> Any:
    """A config field filled with `Choice`s from the registry of that name; `default` names what stands when it is absent."""
    return dataclasses.field(metadata={"registry": registry, "default": default, "doc": doc})


def check_fields(config: Any) -> None:
    """Raises `ConfigError` when a field of `config` leaves the range or the choices its declaration gives it."""
    hints = hints_of(type(config))
    for field in dataclasses.fields(config):
        value, bounds = getattr(config, field.name), field.metadata
        choices = literals_of(hints[field.name])
        if choices and value not in choices and not (isinstance(value, int) and int in typing.get_args(hints[field.name])):
            raise ConfigError(f"{field.name}: {value!r} is not one of {names(choices)}{did_you_mean(value, choices)}")
        for number in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                continue
            if (
                not math.isfinite(number)
                or not number >= bounds.get("low", number)
                or not number <= bounds.get("high", number)
                or ("above" in bounds and not number > bounds["above"])
            ):
                raise ConfigError(f"{field.name}: {number!r} is out of range, want {_range(bounds)}")


def check_foreign(config: Any, by: str, owners: Mapping[str, Collection[str]]) -> None:
    """Raises `ConfigError` where a setting of `owners` departs from its default, but the choice in the field `by` is none that has it."""
    choice = getattr(config, by)
    for name, choices in owners.items():
        value = getattr(config, name)
        if choice not in choices and value != getattr(type(config), name):
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ConfigError(f"{name}: {shown} stands beside {by}: {choice}, which has no such setting")


def fill_preset(config: Any, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Fills the fields of a frozen `config` that are None from the preset it names.

    Raises `ConfigError` where all of them are given and are another preset's: a filled-in config whose preset was changed.
    """
    given = {name: getattr(config, name) for name in presets[config.preset]}
    for other, values in presets.items():
        if other != config.preset and given == values:
            raise ConfigError(f"preset: {config.preset!r} stands beside all the values of {other!r}; leave those out")
    for name, value in presets[config.preset].items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)


def program(config: Any) -> Any:
    """What of a config is part of the compiled program, as hashable data: equal for configs that can run as members of one."""
    if not dataclasses.is_dataclass(config):
        return config
    fields = [(field.name, getattr(config, field.name), field.metadata.get("member")) for field in dataclasses.fields(config)]
    return tuple((name, bool(value) if member else program(value)) for name, value, member in fields)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One entry of a registry with its settings: `name` in the registry, `label` in the results, `config`. A model that was trained
    elsewhere has the file or folder of its `checkpoint`."""

    name: str
    label: str
    config: Any
    checkpoint: str = ""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule. Weight decay is coupled L2, as PyTorch's SGD and Adam have it."""

    name: Literal["sgd", "adam", "adamw"] = option("sgd", "optimiser")
    lr: float = option(0.01, "learning rate (the peak of a schedule)", above=0, member=True)
    momentum: float = option(0.9, "SGD momentum", low=0, high=1, member=True)
    nesterov: bool = option(False, "Nesterov momentum")
    weight_decay: float = option(5e-4, "weight decay: coupled L2 (sgd, adam), decoupled (adamw)", low=0, member=True)
    schedule: Literal["constant", "cosine", "cosine_epoch", "onecycle", "multistep", "drop"] = option(
        "cosine_epoch",
        "cosine_epoch: to 0, constant within an epoch, as the field's PyTorch recipes step it; cosine: per step; "
        "multistep: a tenth after 1/20 of the epochs, a hundredth after half; drop: a tenth after two thirds",
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training of the (backdoored) model. Defaults: the recipe most published numbers rest on (BackdoorBench's)."""

    epochs: int = option(100, "passes over the training set", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(128, "images a step; the last short batch is dropped", low=1)
    augment: Literal["auto", "none", "cutout"] = option(
        "auto", "auto: the crop and flip that the data set allows; cutout: these, and a square of 2×2 pixels cut out, as ABL"
    )
    optimizer: OptimConfig = option(OptimConfig, "optimiser and schedule")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class ReservedConfig:
    """The clean images a post-training defence may use, drawn from the clean training set by the seed."""

    fraction: float = option(0.05, "share of the training set", above=0, high=1)
    count: int = option(0, "number of images instead of a share (0: use fraction)", low=0)
    stratified: bool = option(False, "the same share of every class")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How optimiser loops run. A step's numbers agree to rounding whatever stands here, and to the bit where nothing here changes."""

    log_every: int = option(50, "steps between lines of metrics.jsonl", low=1)
    save_every: int = option(200, "steps between training checkpoints", low=1)
    save_seconds: float = option(20.0, "but at least so many seconds between them", low=0)
    steps_per_call: int = option(
        0, "steps in one compiled call (0: 1 on CPU, 25 on accelerators); the periods are best multiples of it", low=0
    )
    members: Literal["auto", "together", "apart"] = option(
        "auto", "seeds and sweeps that share a program: in one call, or one after another; auto: together but on CPU"
    )
    devices: int = option(0, "how many devices share the work (0: all of them, but 1 on CPU)", low=0)
    placement: Literal["auto", "device", "stream"] = option(
        "auto",
        "training images kept on the device, or brought batch by batch; auto: kept where they fill at most half of its free memory",
    )
    watch_every: int = option(
        0,
        "steps between ACC/ASR measurements during repairs (0: none), in whole calls of a loop, so that they may be some more; for plots only",
        low=0,
    )
    eval_batch: int = option(500, "images a call in evaluation", low=1)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study: every attack × every defence × every seed on one data set and one model."""

    dataset: Choice = section("datasets", "digits", "the images")
    model: Choice = section("models", "preact_resnet18", "the architecture")
    attacks: tuple[Choice, ...] = section("attacks", ("badnets",), "the attacks")
    defenses: tuple[Choice, ...] = section("defenses", ("finetune", "d3"), "the defences tried on every attack")
    evolutions: tuple[Choice, ...] = section("evolutions", (), "how every model is updated on fresh data")
    detections: tuple[Choice, ...] = section("detections", (), "how every model is looked at for a backdoor")
    train: TrainConfig = option(TrainConfig, "training of the backdoored model")
    fresh: float = option(0.0, "share of the training images kept back for evolutions", low=0, high=0.95)
    measured: int = option(0, "test images measured after every update (0: all)", low=0)
    reserved: ReservedConfig = option(ReservedConfig, "the defender's clean images")
    seeds: tuple[int, ...] = option((0,), "one run of everything per seed", low=0, high=2**32 - 1)
    attack_seed: int | None = option(None, "train one backdoored model with this seed for all seeds", low=0, high=2**32 - 1)
    precision: Literal["auto", "float32", "tensorfloat32", "bfloat16"] = option(
        "auto",
        "of convolutions and products; auto: bfloat16 on GPU and TPU, float32 on CPU; tensorfloat32: NVIDIA's, float32 elsewhere",
    )
    features: int = option(0, "test images of all classes whose features, clean and triggered, the report shows (0: none)", low=0)
    paths: int = option(
        0, "points on the line from each backdoored model through its repaired ones, for the report (0: none)", low=0
    )
    loop: LoopConfig = option(LoopConfig, "logging, checkpoints, steps per call")
    cache: str = option("", "folder for backdoored models shared between studies (empty: inside the run folder)")
    published: dict[str, str] = option(dict, "the published number beside a row, by 'attack/defense'")

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
                raise ConfigError(f"{name}: {names(twice)} stands twice; give each its own `label:`")
        both = {choice.label for choice in self.defenses} & {choice.label for choice in self.evolutions}
        if both:
            raise ConfigError(f"evolutions: {names(sorted(both))} is a label of defenses too; give one another `label:`")
        for evolution in self.evolutions:
            called, known = evolution.config.defense, [choice.label for choice in self.defenses]
            if called is not None and called not in known:
                raise ConfigError(
                    f"evolutions: {evolution.label}: defense: {called!r} is no label of `defenses`, which are "
                    f"{names(known) or 'none'}{did_you_mean(called, known)}"
                )
        if self.evolutions and not self.fresh:
            raise ConfigError("fresh: 0 leaves no images for evolutions; usual is 0.6")
        kept = {"none", "train", "read", "trigger"} & {choice.label for choice in (*self.defenses, *self.evolutions)}
        if kept:
            raise ConfigError(f"defenses: the label {names(kept)} is kept for the backdoored model itself")
        cells = [f"{a.label}/{d}" for a in self.attacks for d in ("none", *(d.label for d in (*self.defenses, *self.evolutions)))]
        for cell in self.published if self.defenses or self.evolutions else ():  # without them it is the first half of some study
            if cell not in cells:
                raise ConfigError(f"published.{cell}: no such row; rows are {names(cells)}{did_you_mean(cell, cells)}")


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The resolved type of every field."""
    return typing.get_type_hints(cls)


def literals_of(hint: Any) -> tuple:
    """The choices of a `Literal` (or optional `Literal`) hint; () for others."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        args = typing.get_args(hint)
        inner = sum((literals_of(arg) for arg in args), ())
        return (*inner, *([None] if type(None) in args else [])) if inner else ()
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def names(items: Iterable[Any]) -> str:
    """Names in a row, for a message."""
    return ", ".join(map(str, items))


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """A hint at the nearest known name, or nothing."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _range(bounds: Mapping[str, Any]) -> str:
    parts = [f"{symbol} {bounds[name]:g}" for name, symbol in (("above", ">"), ("low", "≥"), ("high", "≤")) if name in bounds]
    return " and ".join(parts)
