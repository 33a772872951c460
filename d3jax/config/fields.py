"""Functions that declare and check the fields of config dataclasses, and that choose presets.

A value of the wrong type, out of range or not among the choices raises `ConfigError`. That happens
when the dataclass is made, from YAML or in Python. Does not import jax.
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
"""The name of each type in messages; values of other types are called mappings."""

ACCEPTED = {tuple: (tuple, list), float: (float, int)}
"""For a declared type, the types of the values that are accepted for it."""

MOST_CHANNELS = 1_000_000
"""The largest allowed width of a network.

The computed size of a wider one could overflow before it is found to be too large.
"""

BY_NAME = "takes its settings by name: name(config, info) is now name(setting=value).build(info)"
"""The error text that shows the new call to code that passes a config and a data set."""

Limits = tuple[float, float, float]
"""(above, low, high): a number must be > above, ≥ low and ≤ high."""


def option(
    default: Any,
    doc: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    member: bool = False,
    added: bool = False,
    filled: bool = False,
) -> Any:
    """Declare a config field with its default, its help text and the range of its numbers.

    The range is low ≤ number ≤ high and number > above. `default` is a value, or a function that
    makes one. `member` marks a number that is passed to the compiled program as an array. Runs
    that differ only in such numbers are members of one program, unless one of two numbers is 0.
    `filled` marks a list that must not be empty.
    `added` marks a field that the class had not at first. A recipe leaves it out at its default, so
    that models which were trained before keep their recipes.
    """
    metadata = {"doc": doc, "member": member, "added": added, "filled": filled}
    metadata["limits"] = (above, low, high)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(registry: str, default: Any, doc: str) -> Any:
    """Declare a field of a study's config that holds a `Choice`, or several, from a registry.

    `default` is the value, as plain YAML data, for a file without this field.
    """
    return dataclasses.field(metadata={"registry": registry, "default": default, "doc": doc})


def default_of(field: dataclasses.Field) -> Any:
    """Return the declared default of a dataclass field, or `dataclasses.MISSING` if it has none."""
    make = field.default_factory
    return field.default if make is dataclasses.MISSING else make()


def check_fields(config: Any) -> None:
    """Check every field of a config dataclass, and convert it to the declared type in place.

    A list becomes a tuple, and an int becomes a float where a float is declared. Config classes use
    this function as their `__post_init__`, or call it there. Raises a `ConfigError` that begins
    with the name of the field.
    """
    for field in dataclasses.fields(config):
        hint, value = hints_of(type(config))[field.name], getattr(config, field.name)
        limits = field.metadata.get("limits", ANY)
        doc = field.metadata.get("doc", "want a value")
        refuse(value is dataclasses.MISSING, f"{field.name}: is missing: {doc}")
        empty = field.metadata.get("filled", False) and value in ((), [])
        refuse(empty, f"{field.name}: is empty, want at least one value: {doc}")
        object.__setattr__(config, field.name, checked(field.name, value, hint, limits))


ANY = (-math.inf, -math.inf, math.inf)
"""The limits of a number that may have any finite value."""


def checked(name: str, value: Any, hint: Any, limits: Limits = ANY, words: tuple = ()) -> Any:
    """Return a setting's value converted to the type `hint`; raise `ConfigError` if it is wrong.

    Every number must be inside `limits`. A value that is one of `words` is returned as it is, and
    one with the hint `Any` too. Raises a `ConfigError` that begins with `name`. For an item of a
    list or mapping it begins with name.index or name.key.
    """
    if hint is Any:
        return value
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
    """Return the words for the type `kind` in an error message, such as "a whole number" for int.

    For a config class and a dict, the text shows the call of the class. Dicts are only converted
    when they come from a file.
    """
    if isinstance(value, dict) and kind not in WANTED:
        return f"a {kind.__name__}, as in {kind.__name__}(setting=value)"
    return WANTED.get(kind, "a mapping")


def _is_a(value: Any, kind: Any) -> bool:
    """Return whether the value of a setting is accepted for the declared type `kind`.

    A bool is accepted for bool only, although it is an int in Python.
    """
    right = isinstance(value, ACCEPTED.get(kind, kind))
    return right and (kind is bool or not isinstance(value, bool))


def _chosen(name: str, value: Any, choices: tuple) -> Any:
    """Return the allowed choice that equals `value` as text; raise `ConfigError` if none does.

    The text is compared because YAML reads the choice "12" as a number.
    """
    refuse(
        str(value) not in map(str, choices),
        f"{name}: {value!r} is not one of {names(choices)}{did_you_mean(value, choices)}",
    )
    return next(choice for choice in choices if str(choice) == str(value))


def _in_range(name: str, number: float, limits: Limits) -> float:
    """Return a setting's number if it is finite and within `limits`; else raise `ConfigError`."""
    above, low, high = limits
    signs = zip((">", "≥", "≤"), limits, strict=True)
    wanted = " and ".join(f"{sign} {limit:g}" for sign, limit in signs if math.isfinite(limit))
    refuse(
        not (math.isfinite(number) and low <= number <= high and number > above),
        f"{name}: {number!r} is out of range, want {wanted or 'a finite number'}",
    )
    return number


def check_foreign(config: Any, by: str, owners: Mapping[str, Collection[str]]) -> None:
    """Raise `ConfigError` for a changed setting that the choice in the field `by` does not have.

    `by` is the name of the field with the choice. `owners` maps each setting to the choices that
    have it. A setting is changed if it differs from its default. The message begins with the name
    of the setting.
    """
    for name, choices in owners.items():
        value, choice = getattr(config, name), getattr(config, by)
        refuse(
            choice not in choices and value != getattr(type(config), name),
            f"{name}: {shown(value)} does not apply to {by}: {choice}, which has no such setting",
        )


def presets(by: str, *instances: Any) -> dict[str, Any]:
    """Register instances of a config class as the class's presets; return {preset name: instance}.

    The field `by` of an instance is its preset name. Afterwards `cls(by=name, **given)` takes the
    values that are not `given` from the preset `name`, in Python and in a config file. One instance
    must have the defaults of the class.
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
    """Replace the `__init__` of config classes by one that takes only known keyword arguments.

    A positional call raises a `ConfigError` that shows the new call. Older code passed a config and
    a data set to a constructor of the same name.
    """
    for cls in classes:
        cls.__init__ = _named_only(cls.__name__, cls.__init__)


def _named_only(name: str, plain: Callable[..., None]) -> Callable[..., None]:
    """Return an `__init__` for a config class that takes only known keyword arguments."""

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
    """Return the values that the fields of a config class have before given settings are applied.

    They are the values of `base`, or else the declared defaults. For a class with presets, they are
    the values of the preset that `given` names, except that values of `base` which differ from its
    own preset are kept. Raises `ConfigError` if `given` contains every value in which another
    preset differs from the named one. Then a complete config was written, and only its preset was
    changed. If it is a single value, a user may have set just that, so all fields must be given.
    """
    if not hasattr(cls, "presets"):
        declared = {field.name: default_of(field) for field in dataclasses.fields(cls)}
        return declared | (vars(base) if base else {})
    own = cls.presets[getattr(base or cls, cls.chosen_by)]
    named = cls.presets.get(str(given.get(cls.chosen_by)), own)
    for name, other in cls.presets.items():
        apart = _differences(other, named)  # the preset's name, and its values
        one_setting = len(apart) == 2 and len(given) < len(dataclasses.fields(cls))
        refuse(
            apart and not one_setting and apart.items() <= {**given, cls.chosen_by: name}.items(),
            f"{cls.chosen_by}: {getattr(named, cls.chosen_by)!r} is given with all the values of "
            f"{name!r}; leave those values out",
        )
    return vars(named) | _differences(base or own, own)


def _differences(config: Any, other: Any) -> dict[str, Any]:
    """Return {field: value} of a config for the fields that differ from the config `other`."""
    return {name: value for name, value in vars(config).items() if value != vars(other)[name]}


def program(config: Any) -> Any:
    """Return the settings of a config that decide the compiled JAX program, as a hashable value.

    It is equal for configs that can run as members of one program. Of a `member` number it only
    keeps whether the number is 0.
    """
    if not dataclasses.is_dataclass(config):
        return config
    return tuple(
        (field.name, bool(value) if field.metadata.get("member") else program(value))
        for field, value in zip(dataclasses.fields(config), vars(config).values(), strict=True)
    )


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Return the declared types of the fields of a config class, as {field name: type}."""
    return get_type_hints(cls)


def literals_of(hint: Any) -> tuple:
    """Return the choices of a `Literal` type, also inside a union or list; () for other types."""
    parts = (part for part in (hint, *get_args(hint)) if get_origin(part) is Literal)
    return tuple(word for part in parts for word in get_args(part))
