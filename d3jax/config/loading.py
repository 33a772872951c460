"""Load configs from YAML and the command line, strictly: an unknown key, a wrong type or a bad value is a `ConfigError`.

The message names where the value came from, the path of its key, the value and what is allowed. No jax in here.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import ConfigError
from .fields import default_of, did_you_mean, hints_of, literals_of, names, refuse, shown, start_of
from .study import Choice, StudyConfig

Registries = Mapping[str, Mapping[str, type]]
"""registry -> name -> config dataclass."""


def load(
    path: str | Path, overrides: Sequence[tuple[str, str]] = (), *, registries: Registries
) -> StudyConfig:
    """Read the YAML file at `path`, apply `(dotted key, YAML value)` overrides and check everything.

    Raises `ConfigError` with the path of the offending key, its value, its origin and the choices.
    """
    try:
        text = Path(path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({why})") from error
    return loads(text, overrides, registries=registries, origin=str(path))


def loads(
    text: str,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    registries: Registries,
    origin: str = "config",
) -> StudyConfig:
    """Read a study as `load` does, from YAML text; `origin` names it in errors."""
    tree = _parse(text, origin)
    tree = {} if tree is None else tree
    kind = type(tree).__name__
    refuse(kind != "dict", f"{origin}: want a mapping of sections, got {kind}")
    changes = {key: _parse(value, f"--{key}") for key, value in overrides}
    try:
        return _study(tree, changes, registries)
    except ConfigError as error:
        raise ConfigError(_located(str(error), origin, changes)) from error


def build(cls: type, given: Any, prefix: str = "", base: Any = None) -> Any:
    """Return a `cls` of plain data; what is not `given` is as in the preset that they name, in `base` or as declared.

    Null stands for a section's or a preset's own value. `prefix` begins the paths of the keys in errors.
    """
    for key in given:
        _check_key(key, cls, prefix)
    values, hints = start_of(cls, given, base), hints_of(cls)
    for name, item in given.items():
        nested, own = dataclasses.is_dataclass(hints[name]), values[name]
        if nested and isinstance(item, dict):
            values[name] = build(hints[name], item, f"{prefix}{name}.", own)
        elif item is not None or not (nested or hasattr(cls, "presets")):
            values[name] = item
    for field in dataclasses.fields(cls):
        missing = values[field.name] is dataclasses.MISSING
        refuse(missing, f"{prefix}{field.name}: is missing: {field.metadata.get('doc')}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def changed(tree: Any, key: str, value: Any, where: str) -> Any:
    """Return nested mappings and lists with `value` at the dotted `key`, which ends the path `where`; `tree` is kept."""
    name, _, rest = key.partition(".")
    parent = where.removesuffix(key).rstrip(".")
    if isinstance(tree, str):
        tree = {"name": tree}  # `attacks: [badnets]` is short for `attacks: [{name: badnets}]`
    refuse(
        not isinstance(tree, (dict, list)),
        f"{where}: {parent} is {tree!r}, which has nothing inside",
    )
    if isinstance(tree, dict):
        return tree | {name: changed(tree.get(name, {}), rest, value, where) if rest else value}
    wrong = f"is a list, want an index from 0 to {len(tree) - 1}, got {name!r}"
    refuse(name not in map(str, range(len(tree))), f"{where}: {parent} {wrong}")
    items = list(tree)
    items[int(name)] = changed(items[int(name)], rest, value, where) if rest else value
    return items


def to_mapping(config: Any) -> Any:
    """Return `config` as plain data, such that loading its YAML gives `config` again."""
    return dataclasses.asdict(config, dict_factory=_plain)


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a config; those of a `Choice` with its settings beside its name."""
    mapping = {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}
    settings = mapping.pop("config", {})
    return {
        key: value for key, value in mapping.items() if (key, value) != ("checkpoint", "")
    } | settings


def dumps(config: Any) -> str:
    """Return `config` as YAML."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True, width=120)


def describe(config: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, default, meaning) of every field of a config class, nested sections included.

    The defaults are the class's own, or, of an instance, its values.
    """
    cls, rows = config if isinstance(config, type) else type(config), []
    for field in dataclasses.fields(cls):
        default = field.metadata.get("default", default_of(field))
        default = default if config is cls else getattr(config, field.name)
        if dataclasses.is_dataclass(default):
            rows += describe(default, f"{prefix}{field.name}.")
            continue
        choices = names(literals_of(hints_of(cls)[field.name]))
        doc = field.metadata.get("doc", "") + (f" [{choices}]" if choices else "")
        rows.append((prefix + field.name, _in_yaml(default), doc))
    return rows


def _in_yaml(value: Any) -> str:
    """Return a default in one line."""
    if value is dataclasses.MISSING:
        return "required"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


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
        why = getattr(error, "problem", None) or error
        raise ConfigError(f"{where}: not YAML: {why}") from error


def _study(tree: dict, changes: Mapping[str, Any], registries: Registries) -> StudyConfig:
    """Return the study of plain data after the `changes` at dotted keys."""
    fields = [field for field in dataclasses.fields(StudyConfig) if "registry" in field.metadata]
    tree = {field.name: field.metadata["default"] for field in fields} | tree
    for key, value in changes.items():
        tree = changed(tree, key, value, key)
    for field in fields:
        read = _choice if hints_of(StudyConfig)[field.name] is Choice else _choices
        registry = field.metadata["registry"]
        tree[field.name] = read(registries, registry, tree[field.name], field.name)
    return build(StudyConfig, tree)


def _located(error: str, origin: str, changes: Mapping[str, Any]) -> str:
    """Return an error that begins with the path of a key with where that came from before it: the file, or an override."""
    path, _, message = error.partition(": ")
    for key in changes:
        if f"{path}.".startswith(f"{key}."):
            return f"--{error}"
        if message.startswith("unknown key") and key.startswith(f"{path}."):
            return f"--{key}: {message}"
    return f"{origin}: {error}"


def _check_key(key: Any, cls: type, prefix: str) -> None:
    known = hints_of(cls)
    sweep = "; a sweep stands in an entry of attacks, detections, evolutions or defenses"
    hint = sweep if key == "sweep" else did_you_mean(key, known)
    wrong = f"unknown key {key!r}; known keys: {names(known)}{hint}"
    refuse(key not in known, f"{prefix}{key}: {wrong}")


def _choices(registries: Registries, registry: str, value: Any, path: str) -> tuple[Choice, ...]:
    refuse(not isinstance(value, (list, tuple)), f"{path}: want a list, got {value!r}")
    entries = [_swept(registries, registry, item, f"{path}.{i}") for i, item in enumerate(value)]
    return tuple(itertools.chain(*entries))


def _swept(registries: Registries, registry: str, item: Any, path: str) -> list[Choice]:
    """Return the choice of an entry, or of each combination where it has `sweep: {setting: [values]}`."""
    if not isinstance(item, dict) or "sweep" not in item:
        return [_choice(registries, registry, item, path)]
    sweep = item["sweep"]
    lists = isinstance(sweep, dict) and [isinstance(v, list) and v for v in sweep.values()]
    wrong = f"want a mapping of settings to lists of values, got {sweep!r}"
    refuse(not lists or not all(lists), f"{path}.sweep: {wrong}")
    plain, choices = {key: value for key, value in item.items() if key != "sweep"}, []
    for values in itertools.product(*sweep.values()):
        entry, ends = plain, ""
        for key, value in zip(sweep, values, strict=True):
            entry = changed(entry, key, value, f"{path}.{key}")
            if key != "preset" or "label" in item:  # a label of its own has the preset already
                ends += f"-{key.rpartition('.')[2]}" + re.sub(r"[^\w.+-]+", "_", shown(value))
        try:
            choices.append(_choice(registries, registry, entry, path, ends))
        except ConfigError as error:
            raise ConfigError(f"{error} (in its sweep: {sweep})") from error
    return choices


def _choice(registries: Registries, registry: str, value: Any, path: str, ends: str = "") -> Choice:
    """Return the choice of an entry: a name, or a mapping with `name` and settings; `ends` is added to its label."""
    known, entry = registries[registry], {"name": value} if isinstance(value, str) else value
    named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
    wrong = f"want a name or a mapping with `name`, got {value!r}; known {registry}: {names(known)}"
    refuse(not named, f"{path}: {wrong}")
    name, _, argument = entry["name"].partition(":")
    there = name in known and (not argument or hasattr(known[name], "from_argument"))
    wrong = f"is not in {registry}: {names(known)}{did_you_mean(name, known)}"
    refuse(not there, f"{path}.name: {entry['name']!r} {wrong}")
    outside = ("name", "label", "checkpoint") if registry == "models" else ("name", "label")
    settings = known[name].from_argument(argument) if argument else {}
    settings |= {key: item for key, item in entry.items() if key not in outside}
    config = build(known[name], settings, f"{path}.")
    preset = getattr(config, "preset", "")
    label = entry.get("label") or (f"{name}-{preset}" if preset else name)
    wrong = f"want a word of letters, digits and . _ + -, got {label!r}"
    refuse(not re.fullmatch(r"[\w.+-]+", str(label)), f"{path}.label: {wrong}")
    checkpoint = entry.get("checkpoint") if registry == "models" else ""
    wrong = f"want a file or a folder, got {checkpoint!r}"
    refuse(not isinstance(checkpoint or "", str), f"{path}.checkpoint: {wrong}")
    return Choice(name, f"{label}{ends}", config, checkpoint or "")
