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

from ..core.errors import ConfigError


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
    bounds = {
        name: bound
        for name, bound in (("low", low), ("high", high), ("above", above))
        if bound is not None
    }
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
        if (
            choices
            and value not in choices
            and not (isinstance(value, int) and int in typing.get_args(hints[field.name]))
        ):
            raise ConfigError(
                f"{field.name}: {value!r} is not one of {names(choices)}{did_you_mean(value, choices)}"
            )
        for number in (
            value
            if isinstance(value, tuple)
            else value.values()
            if isinstance(value, dict)
            else (value,)
        ):
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                continue
            if (
                not math.isfinite(number)
                or not number >= bounds.get("low", number)
                or not number <= bounds.get("high", number)
                or ("above" in bounds and not number > bounds["above"])
            ):
                raise ConfigError(
                    f"{field.name}: {number!r} is out of range, want {_range(bounds)}"
                )


def check_foreign(config: Any, by: str, owners: Mapping[str, Collection[str]]) -> None:
    """Raises `ConfigError` where a setting of `owners` departs from its default, but the choice in the field `by` is none that has it."""
    choice = getattr(config, by)
    for name, choices in owners.items():
        value = getattr(config, name)
        if choice not in choices and value != getattr(type(config), name):
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ConfigError(
                f"{name}: {shown} stands beside {by}: {choice}, which has no such setting"
            )


def fill_preset(config: Any, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Fills the fields of a frozen `config` that are None from the preset it names.

    Raises `ConfigError` where all of them are given and are another preset's: a filled-in config whose preset was changed.
    """
    given = {name: getattr(config, name) for name in presets[config.preset]}
    for other, values in presets.items():
        if other != config.preset and given == values:
            raise ConfigError(
                f"preset: {config.preset!r} stands beside all the values of {other!r}; leave those out"
            )
    for name, value in presets[config.preset].items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)


def program(config: Any) -> Any:
    """What of a config is part of the compiled program, as hashable data: equal for configs that can run as members of one."""
    if not dataclasses.is_dataclass(config):
        return config
    fields = [
        (field.name, getattr(config, field.name), field.metadata.get("member"))
        for field in dataclasses.fields(config)
    ]
    return tuple(
        (name, bool(value) if member else program(value)) for name, value, member in fields
    )


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
    parts = [
        f"{symbol} {bounds[name]:g}"
        for name, symbol in (("above", ">"), ("low", "≥"), ("high", "≤"))
        if name in bounds
    ]
    return " and ".join(parts)
