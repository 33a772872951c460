"""Functions that load a study's config from YAML and command-line overrides, and write it back.

An unknown key, a wrong type or a bad value raises `ConfigError`. The message names the origin of
the value, the path of its key, the value and what is allowed. Does not import jax.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import ConfigError, did_you_mean, names, refuse, shown
from ..core.paths import user_path
from .fields import checked, default_of, hints_of, literals_of, start_of
from .stored_model import entry_of_file, with_victims
from .study import Choice, StudyConfig, rows_of
from .yaml_text import parse_yaml

Registries = Mapping[str, Mapping[str, type]]
"""The config classes by registry and name: {registry: {name: config class}}."""

READ = {"models": ("checkpoint", "checkpoint_key", "ignore"), "attacks": ("checkpoint",)}
"""The settings of an external model by registry, in the same mapping as the entry's own."""

LONGEST_LABEL = 80
"""The largest number of bytes in a label.

A folder name contains up to two labels, and file systems allow at most 255 bytes.
"""
MOST_SWEPT = 10_000
"""The largest number of entries that one sweep may make."""
ASIDE = ("x-", ".")
"""Prefixes of top-level keys that are ignored, so that they can hold YAML anchors."""

ELSEWHERE = {
    "sweep": "; a sweep belongs in an entry of attacks, detections, evolutions or defenses"
}
"""For an unknown key that is valid in another place, the hint that the error adds."""


def load(
    path: str | Path, overrides: Sequence[tuple[str, str]] = (), *, registries: Registries
) -> StudyConfig:
    """Read a `StudyConfig` from a YAML file, apply command-line overrides, and check everything.

    An override is a pair (dotted key, value as YAML text). Raises `ConfigError` with the path of
    the offending key, its value, its origin and the choices.
    """
    try:
        text = user_path(path, "--config").read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    tree = parse_yaml(text, str(path))
    refuse(tree is None, f"{path}: is empty, want the settings of a study")
    return _loaded(tree, overrides, registries, str(path))


def loads(
    text: str,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    registries: Registries,
    origin: str = "config",
) -> StudyConfig:
    """Read a `StudyConfig` from YAML text and overrides; `origin` names the text in errors."""
    tree = parse_yaml(text, origin)
    return _loaded({} if tree is None else tree, overrides, registries, origin)


def _loaded(
    tree: Any, overrides: Sequence[tuple[str, str]], registries: Registries, origin: str
) -> StudyConfig:
    """Return the `StudyConfig` that the data of a YAML file describe, after applying overrides."""
    kind = type(tree).__name__
    refuse(kind != "dict", f"{origin}: want a mapping of sections, got {kind}")
    tree = {key: value for key, value in tree.items() if not str(key).startswith(ASIDE)}
    changes = {key: parse_yaml(value, f"--{key}") for key, value in overrides}
    try:
        return _study(tree, changes, registries)
    except ConfigError as error:
        raise ConfigError(_located(str(error), origin, changes)) from error


def build(cls: type, given: Mapping[str, Any], prefix: str = "", base: Any = None) -> Any:
    """Return an instance of the config class `cls`, with the plain data `given` as its settings.

    Settings that are not given have the values of `start_of`. A null keeps that value too, for a
    section and in a class with presets. `prefix` is put before the keys in errors.
    """
    known, values = hints_of(cls), start_of(cls, given, base)
    for name, item in given.items():
        refuse(
            name not in known,
            f"{prefix}{name}: unknown key {name!r}; known keys: {names(known)}"
            f"{ELSEWHERE.get(name) or did_you_mean(name, known)}",
        )
        nested = dataclasses.is_dataclass(known[name])
        if nested and isinstance(item, dict):
            values[name] = build(known[name], item, f"{prefix}{name}.", values[name])
        elif item is not None or not (nested or hasattr(cls, "presets")):
            values[name] = item
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def changed(tree: Any, key: str, value: Any, where: str) -> Any:
    """Return a copy of nested YAML data (dicts and lists) with `value` at the dotted `key`.

    `where` is the whole path that ends in `key`, and begins the errors.
    """
    name, _, rest = key.partition(".")
    parent = where.removesuffix(key).rstrip(".")
    tree = {"name": tree} if isinstance(tree, str) else tree  # `[badnets]`: `[{name: badnets}]`
    if not key:
        return value
    if isinstance(tree, dict):
        return tree | {name: changed(tree.get(name, {}), rest, value, where)}
    refuse(not isinstance(tree, list), f"{where}: {parent} is {tree!r}, which has nothing inside")
    refuse(
        name not in map(str, range(len(tree) + 1)),
        f"{where}: {parent} is a list of {len(tree)}, want an index from 0 to {len(tree)} (which "
        f"adds an entry), or all of it as --{parent} '[…]'; got {name!r}",
    )
    if name == str(len(tree)):
        return [*tree, changed({}, rest, value, where)]
    pairs = enumerate(tree)
    return [changed(item, rest, value, where) if str(i) == name else item for i, item in pairs]


def to_mapping(config: Any) -> Any:
    """Return a config as plain dicts and lists, from which YAML loading makes an equal config."""
    return dataclasses.asdict(config, dict_factory=_plain)


def recipe_of(config: Any) -> dict[str, Any]:
    """Return a config as plain data for a recipe, without `added` fields that have their default.

    See `config.fields.option`.
    """
    same = {
        field.name
        for field in dataclasses.fields(config)
        if field.metadata.get("added") and getattr(config, field.name) == default_of(field)
    }
    return {name: value for name, value in to_mapping(config).items() if name not in same}


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the (field name, value) pairs of a config as a dict of plain YAML data.

    The settings of a `Choice` are put into the same mapping as its name and label.
    """
    mapping: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in pairs
    }
    settings = mapping.pop("config", {})
    for key in READ["models"]:
        if not mapping.get(key, True):
            del mapping[key]
    return mapping | settings


def dumps(config: Any) -> str:
    """Return a config dataclass, such as a `StudyConfig`, as YAML text."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True, width=120)


def describe(config: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, default, help text) for every field of a config class and its sections.

    For an instance, the values of its fields replace the defaults.
    """
    cls, rows = config if isinstance(config, type) else type(config), []
    for field in dataclasses.fields(cls):
        default = field.metadata.get("default", default_of(field))
        default = getattr(config, field.name, default)
        choices = names(literals_of(hints_of(cls)[field.name]))
        doc = field.metadata.get("doc", "") + (f" [{choices}]" if choices else "")
        if dataclasses.is_dataclass(default):
            rows += describe(default, f"{prefix}{field.name}.")
        else:
            rows.append((prefix + field.name, _in_yaml(default), doc))
    return rows


def _in_yaml(default: Any) -> str:
    """Return a setting's default value as YAML on one line, or "required" if there is none."""
    plain = "required" if default is dataclasses.MISSING else default
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _study(tree: dict, changes: Mapping[str, Any], registries: Registries) -> StudyConfig:
    """Return the `StudyConfig` that a mapping describes, after setting `changes` at dotted keys.

    A change that replaces the attacks, defences or evolutions drops the published numbers of rows
    that the study then lacks, unless it has no defence and no evolution.
    """
    fields = [field for field in dataclasses.fields(StudyConfig) if "registry" in field.metadata]
    attacks, model = _is_given(tree, changes, "attacks"), _is_given(tree, changes, "model", "name")
    tree = {field.name: field.metadata["default"] for field in fields} | tree
    for key, value in changes.items():
        tree = changed(tree, key, value, key)
    tree = with_victims(tree, attacks=attacks, model=model)
    if isinstance(tree.get("reserved"), dict) and "from" in tree["reserved"]:
        source = tree["reserved"]["from"]
        kept = {key: value for key, value in tree["reserved"].items() if key != "from"}
        sources = source if isinstance(source, list) else [source]
        tree = {**tree, "reserved": kept, "reserved_from": sources}
    for field in fields:
        read = _choice if hints_of(StudyConfig)[field.name] is Choice else _choices
        registry = field.metadata["registry"]
        tree[field.name] = read(
            registry, registries.get(registry, {}), tree[field.name], field.name
        )
    lists = [tree[name] for name in ("attacks", "defenses", "evolutions")]
    replaced = changes.keys() & {"attacks", "defenses", "evolutions"} and any(lists[1:])
    if replaced and isinstance(tree.get("published"), dict):
        rows = rows_of(*lists)
        tree["published"] = {row: text for row, text in tree["published"].items() if row in rows}
    return build(StudyConfig, tree)


def _is_given(tree: dict, changes: Mapping[str, Any], section: str, key: str = "") -> bool:
    """Return whether the file or an override sets a section of a study, or one `key` of it."""
    whole = tree.get(section)
    if section in tree and (not key or not isinstance(whole, dict) or key in whole):
        return True
    wanted = f"{section}.{key}" if key else section
    return any(name == section or f"{name}.".startswith(f"{wanted}.") for name in changes)


def _located(error: str, origin: str, changes: Mapping[str, Any]) -> str:
    """Return a config error that begins with the origin of the value: an override or the file."""
    path, _, message = error.partition(": ")
    given = [f"--{error}" for key in changes if f"{path}.".startswith(f"{key}.")]
    if message.startswith("unknown key"):
        given += [f"--{key}: {message}" for key in changes if key.startswith(f"{path}.")]
    return [*given, f"{origin}: {error}"][0]


def _choices(registry: str, known: Mapping[str, type], value: Any, path: str) -> tuple[Choice, ...]:
    """Return the `Choice`s of a list of attacks, defences or the like, with sweeps expanded."""
    refuse(not isinstance(value, (list, tuple)), f"{path}: want a list, got {value!r}")
    entries = ((item, f"{path}.{i}") for i, item in enumerate(value))
    return tuple(choice for entry in entries for choice in _swept(registry, known, *entry))


def _swept(registry: str, known: Mapping[str, type], item: Any, path: str) -> list[Choice]:
    """Return the `Choice` of a config entry, or one `Choice` per combination of the entry's sweep.

    A sweep is a mapping {setting: [values]}.
    """
    if not isinstance(item, dict) or "sweep" not in item:
        return [_choice(registry, known, item, path)]
    sweep = item["sweep"]
    lists = isinstance(sweep, dict) and all(
        isinstance(key, str) and v and isinstance(v, list) for key, v in sweep.items()
    )
    refuse(
        not sweep or not lists,
        f"{path}.sweep: want a mapping of settings to lists of at least one value, got {sweep!r}",
    )
    odd = sorted({"name", "label"} & set(sweep))
    refuse(bool(odd), f"{path}.sweep: {names(odd)} cannot be swept; write an entry for each")
    count = math.prod(map(len, sweep.values()))
    refuse(count > MOST_SWEPT, f"{path}.sweep: asks for {count} entries, want at most {MOST_SWEPT}")
    plain = {key: value for key, value in item.items() if key != "sweep"}
    settings = (
        dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())
    )
    try:
        return [_combined(registry, known, plain, path, setting) for setting in settings]
    except ConfigError as error:
        raise ConfigError(f"{error} (in its sweep: {sweep})") from error


def _combined(
    registry: str, known: Mapping[str, type], entry: dict, path: str, setting: Mapping[str, Any]
) -> Choice:
    """Return the `Choice` of a config entry for one combination of the swept values.

    `setting` maps dotted keys to values. The label of the choice ends in these values.
    """
    preset = () if "label" in entry else ("preset",)  # a default label has it
    words = ((key.rpartition(".")[2], shown(setting[key])) for key in setting if key not in preset)
    ends = "".join(f"-{name}" + re.sub(r"[^\w.+-]+", "_", value) for name, value in words)
    for key, value in setting.items():
        entry = changed(entry, key, value, f"{path}.{key}")
    return _choice(registry, known, entry, path, ends)


def _usual(known: Mapping[str, type]) -> list[str]:
    """Return common component names with an argument, such as tfds:cifar10, for hints."""
    return [f"{name}:{one}" for name, cls in known.items() for one in getattr(cls, "usual", ())]


def _choice(
    registry: str, known: Mapping[str, type], value: Any, path: str, ends: str = ""
) -> Choice:
    """Return the `Choice` of a config entry: a name, or a mapping with `name` and settings.

    Its default label is the name with the config's `preset` or `variant`, if it has one. `ends` is
    appended to the label.
    """
    entry = {"name": value} if isinstance(value, str) else value
    if registry == "attacks" and isinstance(entry, dict):
        entry = entry_of_file(entry, path)
    refuse(
        not isinstance(entry, dict) or not isinstance(entry.get("name"), str),
        f"{path}: want a name or a mapping with `name`, got {value!r}; "
        f"known {registry}: {names(known)}",
    )
    name, _, argument = entry["name"].partition(":")
    refuse(
        name not in known or (argument and not hasattr(known[name], "from_argument")),
        f"{path}.name: {entry['name']!r} is not in {registry}: {names(known)}"
        f"{did_you_mean(name, [*known, *_usual(known)])}",
    )
    settings = known[name].from_argument(argument) | entry if argument else dict(entry)
    outside = {key: settings.pop(key, None) for key in ("name", "label")}
    given = {key: settings.pop(key) for key in READ.get(registry, ()) if key in settings}
    read = {
        key: checked(f"{path}.{key}", value, hints_of(Choice)[key])
        for key, value in given.items()
        if value is not None
    }
    config = build(known[name], settings, f"{path}.")
    variant = getattr(config, "preset", None) or getattr(config, "variant", None)
    label = outside["label"] or (f"{name}-{variant}" if variant else name)
    label = f"{label}{ends}"
    refuse(
        not re.fullmatch(r"[\w+-][\w.+-]*", label) or len(label.encode()) > LONGEST_LABEL,
        f"{path}.label: want a word of at most {LONGEST_LABEL} letters, digits and . _ + -, which "
        f"does not begin with a dot, got {label[:LONGEST_LABEL]!r}",
    )
    return Choice(name, label, config, **read)
