"""Configs from YAML and the command line, strictly: an unknown key, a wrong type or a bad value is a `ConfigError`.

The message names the path of the key, its value, where it came from and what is allowed. No jax in here.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ..core.errors import ConfigError
from .fields import did_you_mean, hints_of, literals_of, names
from .study import Choice, StudyConfig

Registries = Mapping[str, Mapping[str, type]]
"""registry -> name -> config dataclass."""


def load(
    path: str | Path, overrides: Sequence[tuple[str, str]] = (), *, registries: Registries
) -> StudyConfig:
    """Reads the YAML file at `path`, applies `(dotted key, YAML value)` overrides and checks everything.

    Raises `ConfigError` with the path of the offending key, its value, its origin and the choices.
    """
    try:
        text = Path(path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    return loads(text, overrides, registries=registries, origin=str(path))


def loads(
    text: str,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    registries: Registries,
    origin: str = "config",
) -> StudyConfig:
    """As `load`, from YAML text; `origin` names it in errors."""
    mapping = _parse(text, origin)
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, dict):
        raise ConfigError(f"{origin}: want a mapping of sections, got {type(mapping).__name__}")
    for field in dataclasses.fields(
        StudyConfig
    ):  # what an override may reach into, though the file leaves it out
        if "registry" in field.metadata:
            default = field.metadata["default"]
            mapping.setdefault(field.name, list(default) if isinstance(default, tuple) else default)
    for key, value in overrides:
        _override(mapping, key, _parse(value, f"--{key}"))
    overridden = tuple(key for key, _ in overrides)
    return _Reader(registries, origin, overridden).dataclass(StudyConfig, mapping, "")


def to_mapping(config: Any) -> Any:
    """`config` as plain data, such that loading its YAML gives `config` again."""
    if isinstance(config, Choice):
        walked_in = {"checkpoint": config.checkpoint} if config.checkpoint else {}
        return {
            "name": config.name,
            "label": config.label,
            **walked_in,
            **to_mapping(config.config),
        }
    if dataclasses.is_dataclass(config):
        return {
            field.name: to_mapping(getattr(config, field.name))
            for field in dataclasses.fields(config)
        }
    if isinstance(config, tuple):
        return [to_mapping(item) for item in config]
    return dict(config) if isinstance(config, dict) else config


def dumps(config: Any) -> str:
    """`config` as YAML."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True, width=120)


def describe(config: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, default, meaning) for every field of a config dataclass, nested sections included.

    The defaults are the class's own, or, of an instance, what stands in it.
    """
    cls, rows = config if isinstance(config, type) else type(config), []
    for field in dataclasses.fields(cls):
        default = (
            field.metadata.get("default", _default(field))
            if config is cls
            else getattr(config, field.name)
        )
        if dataclasses.is_dataclass(default):
            rows += describe(default, f"{prefix}{field.name}.")
            continue
        choices = literals_of(hints_of(cls)[field.name])
        doc = field.metadata.get("doc", "") + (
            f" [{', '.join('null' if word is None else str(word) for word in choices)}]"
            if choices
            else ""
        )
        shown = (
            "required"
            if default is dataclasses.MISSING
            else yaml.safe_dump(to_mapping(default), default_flow_style=True, allow_unicode=True)
        )
        rows.append((prefix + field.name, shown.removesuffix("\n").removesuffix("\n..."), doc))
    return rows


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError(
            f"{where}: not YAML: {getattr(error, 'problem', None) or error}"
        ) from error


def _override(tree: Any, key: str, value: Any) -> None:
    """Sets the entry at the dotted `key` of nested mappings and lists to `value`."""
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        node = _child(tree, name, ".".join(parents[:depth]), key)
        if isinstance(node, str):
            node = {"name": node}  # `attacks: [badnets]` is short for `attacks: [{name: badnets}]`
            tree[int(name) if isinstance(tree, list) else name] = node
        if not isinstance(node, (dict, list)):
            raise ConfigError(
                f"--{key}: {'.'.join(parents[: depth + 1])} is {node!r}, which has nothing inside"
            )
        tree = node
    if isinstance(tree, list):
        _child(tree, last, ".".join(parents), key)
        tree[int(last)] = value
    else:
        tree[last] = value


def _child(tree: Any, name: str, where: str, key: str) -> Any:
    if isinstance(tree, dict):
        return tree.setdefault(name, {})
    if not name.isdigit() or int(name) >= len(tree):
        raise ConfigError(
            f"--{key}: {where} is a list, want an index from 0 to {len(tree) - 1}, got {name!r}"
        )
    return tree[int(name)]


class _Reader:
    """Turns plain data into config dataclasses, strictly."""

    def __init__(self, registries: Registries, origin: str, overridden: tuple[str, ...]):
        self.registries, self.origin, self.overridden = registries, origin, overridden

    def fail(self, path: str, message: str) -> typing.NoReturn:
        source = (
            f"--{path}"
            if any(path == key or path.startswith(key + ".") for key in self.overridden)
            else self.origin
        )
        prefix = f"{path}: " if path and source != f"--{path}" else ""
        raise ConfigError(f"{source}: {prefix}{message}")

    def longest(self, path: str) -> str:
        """The override that brought `path`, where the file did not."""
        return next((key for key in self.overridden if key.startswith(f"{path}.")), path)

    def dataclass(self, cls: type, mapping: Any, path: str, base: Any = None) -> Any:
        """A `cls` from `mapping`; what it leaves out is as in `base`, or else as `cls` declares."""
        if not isinstance(mapping, dict):
            self.fail(path, f"want a mapping, got {mapping!r}")
        if base is not None and mapping.get("preset", getattr(base, "preset", None)) != getattr(
            base, "preset", None
        ):
            base = None  # another preset than the default's begins with its own values
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in mapping:
            if key not in fields:
                hint = (
                    "; a sweep stands in an entry of attacks, detections, evolutions or defenses"
                    if key == "sweep"
                    else did_you_mean(key, fields)
                )
                self.fail(
                    self.longest(_join(path, key)),
                    f"unknown key {key!r}; known keys: {names(fields)}{hint}",
                )
        hints, values = hints_of(cls), {}
        # A section that is given in part is filled from the class's defaults, or from what a class says that is chosen by other fields.
        beneath = getattr(cls, "beneath", lambda given: {})(
            {key: item for key, item in mapping.items() if isinstance(item, str)}
        )
        for name, field in fields.items():
            inside = _join(path, name)
            if "registry" in field.metadata:
                values[name] = self.choices(
                    hints[name], field.metadata["registry"], mapping[name], inside
                )
            elif name in mapping and (nested := _nested(hints[name])) and mapping[name] is not None:
                default = beneath.get(name) or (
                    getattr(base, name) if base is not None else _default(field)
                )
                values[name] = self.dataclass(nested, mapping[name], inside, base=default)
            elif name in mapping and dataclasses.is_dataclass(hints[name]):
                self.fail(inside, f"want a mapping, got {mapping[name]!r}")
            elif name in mapping:
                values[name] = self.value(hints[name], mapping[name], inside)
            elif base is not None:
                values[name] = getattr(base, name)
            elif (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                self.fail(inside, f"is missing: {field.metadata.get('doc', 'required')}")
        try:
            return cls(**values)
        except ConfigError as error:
            name, _, message = str(error).partition(": ")
            self.fail(_join(path, name), message)

    def choices(self, hint: Any, registry: str, value: Any, path: str) -> Any:
        if hint is Choice:
            return self.choice(registry, value, path)
        if not isinstance(value, (list, tuple)):
            self.fail(path, f"want a list, got {value!r}")
        choices = []
        for i, item in enumerate(value):
            for entry, suffix in self.swept(item, _join(path, str(i))):
                try:
                    choices.append(self.choice(registry, entry, _join(path, str(i)), suffix))
                except ConfigError as error:
                    if not suffix:
                        raise
                    raise ConfigError(f"{error} (in its sweep: {item['sweep']})") from error
        return tuple(choices)

    def swept(self, item: Any, path: str) -> list[tuple[Any, str]]:
        """The entries that one with `sweep: {key: [values]}` stands for, every combination, with what their labels end on."""
        if not isinstance(item, dict) or "sweep" not in item:
            return [(item, "")]
        inside, sweep = _join(path, "sweep"), item["sweep"]
        if (
            not isinstance(sweep, dict)
            or not sweep
            or not all(isinstance(values, list) and values for values in sweep.values())
        ):
            self.fail(inside, f"want a mapping of settings to lists of values, got {sweep!r}")
        plain = {key: value for key, value in item.items() if key != "sweep"}
        entries = []
        for values in itertools.product(*sweep.values()):
            entry = copy.deepcopy(plain)
            for key, value in zip(sweep, values, strict=True):
                _override(entry, key, value)
            named = [
                key for key in sweep if key != "preset" or "label" in item
            ]  # a label of our own has the preset already
            words = (
                f"-{key.rpartition('.')[2]}{_word(value)}"
                for key, value in zip(sweep, values, strict=True)
                if key in named
            )
            entries.append((entry, "".join(words)))
        return entries

    def choice(self, registry: str, value: Any, path: str, suffix: str = "") -> Choice:
        known = self.registries[registry]
        mapping = {"name": value} if isinstance(value, str) else value
        if not isinstance(mapping, dict) or not isinstance(mapping.get("name"), str):
            self.fail(
                path,
                f"want a name or a mapping with `name`, got {value!r}; known {registry}: {names(known)}",
            )
        outside = ("name", "label", "checkpoint") if registry == "models" else ("name", "label")
        settings = {key: item for key, item in mapping.items() if key not in outside}
        name, _, argument = mapping["name"].partition(":")
        if name not in known or (argument and not hasattr(known[name], "from_argument")):
            self.fail(
                _join(path, "name"),
                f"{mapping['name']!r} is not in {registry}: {names(known)}{did_you_mean(name, known)}",
            )
        if argument:
            settings = {**known[name].from_argument(argument), **settings}
        config = self.dataclass(known[name], settings, path)
        preset = getattr(config, "preset", None)
        label = mapping.get("label", f"{name}-{preset}" if preset else name)
        if not isinstance(label, str) or not re.fullmatch(r"[\w.+-]+", label):
            self.fail(
                _join(path, "label"), f"want a word of letters, digits and . _ + -, got {label!r}"
            )
        walked_in = mapping.get("checkpoint") if registry == "models" else None
        if walked_in is not None and not isinstance(walked_in, str):
            self.fail(_join(path, "checkpoint"), f"want a file or a folder, got {walked_in!r}")
        return Choice(name, label + suffix, config, walked_in or "")

    def value(self, hint: Any, value: Any, path: str) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in args:
                return None
            if isinstance(value, str) and (words := literals_of(hint)):
                if value not in words:
                    self.fail(path, f"want a whole number or {names(words)}, got {value!r}")
                return value
            return self.value(next(arg for arg in args if arg is not type(None)), value, path)
        if origin is tuple:
            if not isinstance(value, list):
                self.fail(path, f"want a list, got {value!r}")
            if args[-1] is not Ellipsis and len(value) != len(args):
                self.fail(path, f"want {len(args)} values, got {value!r}")
            return tuple(
                self.value(args[0], item, _join(path, str(i))) for i, item in enumerate(value)
            )
        if origin is dict:
            if not isinstance(value, dict):
                self.fail(path, f"want a mapping, got {value!r}")
            return {
                self.value(args[0], key, path): self.value(args[1], item, _join(path, str(key)))
                for key, item in value.items()
            }
        if origin is Literal:
            return (
                str(value) if isinstance(value, int) and str(value) in args else value
            )  # check_fields names the choices
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
            self.fail(path, f"want {_TYPES[hint]}, got {value!r}")
        return value


_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _word(value: Any) -> str:
    """A swept value as part of a label."""
    return re.sub(r"[^\w.+-]+", "_", f"{value:g}" if isinstance(value, float) else str(value))


def _nested(hint: Any) -> type | None:
    """The dataclass of a field that is one, or may be."""
    return next(
        (arg for arg in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(arg)), None
    )


def _default(field: dataclasses.Field) -> Any:
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)
