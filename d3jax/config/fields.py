"""Declare the fields of config dataclasses, check their values, choose among presets. No jax.

A value of another type than declared, or outside its range or choices, raises `ConfigError` when
the dataclass is made, from YAML or by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..core.errors import did_you_mean, names, refuse, shown

WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list",
}
"""What a message calls the values of a type; others are mappings."""

ACCEPTED = {tuple: (tuple, list), float: (float, int)}
"""The types of values that stand for another type as well."""

MOST_CHANNELS = 1_000_000
"""The largest width of a net; the sizes of wider ones overflow before they can be refused."""

BY_NAME = "takes its settings by name: name(config, info) is now name(setting=value).build(info)"
"""The new call, for code that gave a constructor a config and a data set."""

Limits = tuple[float, float, float]
"""What a number is above, at least and at most."""


def option(
    default: Any,
    doc: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    member: bool = False,
) -> Any:
    """Declare a config field with its meaning and the range of its numbers.

    The range is low ≤ number ≤ high, number > above. `default` is a value, or a function that makes
    one. `member` marks a number that reaches the compiled program as an array, so that runs which
    differ in it (but not in whether it is 0) are members of one program.
    """
    metadata = {"doc": doc, "member": member, "limits": (above, low, high)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(registry: str, default: Any, doc: str) -> Any:
    """Declare a field of `Choice`s from a registry; `default` is in YAML, for a file without it."""
    return dataclasses.field(metadata={"registry": registry, "default": default, "doc": doc})


def default_of(field: dataclasses.Field) -> Any:
    """Return the declared default of a field, `dataclasses.MISSING` where it is required."""
    make = field.default_factory
    return field.default if make is dataclasses.MISSING else make()


def check_fields(config: Any) -> None:
    """Check every field of `config` and convert it to the declared type.

    A list becomes a tuple, and a whole number a float where one is declared. It is, or is called
    by, the `__post_init__` of a config class. Raises `ConfigError` that begins with a field's name.
    """
    for field in dataclasses.fields(config):
        hint, value = hints_of(type(config))[field.name], getattr(config, field.name)
        limits = field.metadata.get("limits", ANY)
        refuse(value is dataclasses.MISSING, f"{field.name}: is missing: {field.metadata['doc']}")
        object.__setattr__(config, field.name, checked(field.name, value, hint, limits))


ANY = (-math.inf, -math.inf, math.inf)
"""Limits of a number that may be any."""


def checked(name: str, value: Any, hint: Any, limits: Limits = ANY, words: tuple = ()) -> Any:
    """Return `value` as a `hint` has it, or as one of `words`, with every number inside `limits`.

    Raises `ConfigError` that begins with `name`, for an item of a list or a mapping with
    name.index or name.key.
    """
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        plain = [arg for arg in args if arg is not type(None) and get_origin(arg) is not Literal]
        found = [arg for arg in plain if _is_a(value, get_origin(arg) or arg)]
        others = [WANTED[arg] for arg in plain[1:] if not found and arg in WANTED]
        words = (*literals_of(hint), *others)
        return checked(name, value, [*found, *plain][0], limits, words)
    if kind is Literal:
        return _chosen(name, value, args)
    if value in words:
        return value
    wanted = " or ".join([_wanted(kind, value), *words])
    refuse(not _is_a(value, kind), f"{name}: want {wanted}, got {value!r}")
    if kind is dict:
        wrong = [key for key in value if not _is_a(key, args[0])]
        refuse(wrong, f"{name}: want {WANTED[args[0]]} as every key, got {names(map(repr, wrong))}")
        return {key: checked(f"{name}.{key}", item, args[1], limits) for key, item in value.items()}
    if kind is tuple:
        return tuple(checked(f"{name}.{i}", item, args[0], limits) for i, item in enumerate(value))
    return _in_range(name, kind(value), limits) if kind in (int, float) else value


def _wanted(kind: Any, value: Any) -> str:
    """Return what a message calls the values of a kind; a dict by hand is no section of a file."""
    if isinstance(value, dict) and kind not in WANTED:
        return f"a {kind.__name__}, as in {kind.__name__}(setting=value)"
    return WANTED.get(kind, "a mapping")


def _is_a(value: Any, kind: Any) -> bool:
    """Return whether `value` is of a `kind`; to Python a bool is an int too."""
    right = isinstance(value, ACCEPTED.get(kind, kind))
    return right and (kind is bool or not isinstance(value, bool))


def _chosen(name: str, value: Any, choices: tuple) -> Any:
    """Return the choice that `value` is; YAML reads the choice "12" as a number."""
    refuse(
        str(value) not in map(str, choices),
        f"{name}: {value!r} is not one of {names(choices)}{did_you_mean(value, choices)}",
    )
    return next(choice for choice in choices if str(choice) == str(value))


def _in_range(name: str, number: float, limits: Limits) -> float:
    """Return `number`, which is finite and inside `limits`."""
    above, low, high = limits
    signs = zip((">", "≥", "≤"), limits, strict=True)
    wanted = " and ".join(f"{sign} {limit:g}" for sign, limit in signs if math.isfinite(limit))
    refuse(
        not (math.isfinite(number) and low <= number <= high and number > above),
        f"{name}: {number!r} is out of range, want {wanted or 'a finite number'}",
    )
    return number


def check_foreign(config: Any, by: str, owners: Mapping[str, Collection[str]]) -> None:
    """Check that a setting has its default where the choice in the field `by` has no such setting.

    `owners` maps a setting to the choices that have it. Raises `ConfigError` that begins with the
    setting.
    """
    for name, choices in owners.items():
        value, choice = getattr(config, name), getattr(config, by)
        refuse(
            choice not in choices and value != getattr(type(config), name),
            f"{name}: {shown(value)} stands beside {by}: {choice}, which has no such setting",
        )


def presets(by: str, *instances: Any) -> dict[str, Any]:
    """Return `instances` of one config class by their field `by`, which chooses among them.

    From then on `cls(by=name, **given)` has of instance `name` what is not `given`, by hand and
    from a config file. One instance has the defaults of the class.
    """
    cls, plain = type(instances[0]), type(instances[0]).__init__
    cls.chosen_by, cls.presets = by, {getattr(instance, by): instance for instance in instances}

    @functools.wraps(plain)
    def init(self: Any, *positional: Any, **given: Any) -> None:
        refuse(positional, f"{cls.__name__}: {BY_NAME}")
        plain(self, **start_of(cls, given) | given)

    cls.__init__ = init
    return cls.presets


def take_by_name(classes: Iterable[type]) -> None:
    """Make config classes refuse settings without a name, with an error that shows the call.

    Code of before gave a constructor a config and a data set.
    """
    for cls in classes:
        cls.__init__ = _named_only(cls.__name__, cls.__init__)


def _named_only(name: str, plain: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(plain)
    def init(self: Any, *positional: Any, **given: Any) -> None:
        refuse(positional, f"{name}: {BY_NAME}")
        known = [field.name for field in dataclasses.fields(self)]
        for key in given:
            refuse(
                key not in known,
                f"{name}: unknown setting {key!r}; known are {names(known) or 'none'}"
                f"{did_you_mean(key, known)}",
            )
        plain(self, **given)

    return init


def start_of(cls: type, given: Mapping[str, Any], base: Any = None) -> dict[str, Any]:
    """Return the values that a `cls` has where none is `given`: those of `base`, or the declared.

    Where `given` names a preset they are the preset's, but for what `base` changes of its own.
    Raises `ConfigError` where all that tells another preset from the named one is given: a config
    that is filled in, and whose preset was changed.
    """
    if not hasattr(cls, "presets"):
        declared = {field.name: default_of(field) for field in dataclasses.fields(cls)}
        return declared | (vars(base) if base else {})
    own = cls.presets[getattr(base or cls, cls.chosen_by)]
    named = cls.presets.get(str(given.get(cls.chosen_by)), own)
    for name, other in cls.presets.items():
        apart = _differences(other, named)
        refuse(
            apart and apart.items() <= {**given, cls.chosen_by: name}.items(),
            f"{cls.chosen_by}: {getattr(named, cls.chosen_by)!r} stands beside all the values of "
            f"{name!r}; leave those out",
        )
    return vars(named) | _differences(base or own, own)


def _differences(config: Any, other: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if value != vars(other)[name]}


def program(config: Any) -> Any:
    """Return what of a config is part of the compiled program, hashable.

    It is equal for configs that can run as members of one program.
    """
    if not dataclasses.is_dataclass(config):
        return config
    return tuple(
        (field.name, bool(value) if field.metadata.get("member") else program(value))
        for field, value in zip(dataclasses.fields(config), vars(config).values(), strict=True)
    )


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Return the resolved type of every field."""
    return get_type_hints(cls)


def literals_of(hint: Any) -> tuple:
    """Return the choices of a `Literal`, alone or in a union or a list; () for other types."""
    parts = (part for part in (hint, *get_args(hint)) if get_origin(part) is Literal)
    return tuple(word for part in parts for word in get_args(part))
