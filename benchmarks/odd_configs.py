"""Functions that make odd configs and command lines at random, as inputs of `faults.py`."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

BASE: dict[str, Any] = {
    "dataset": {"name": "synthetic", "size": 8, "classes": 3, "train": 96, "test": 30},
    "model": "small",
    "attacks": [{"name": "badnets", "rate": 0.1, "target": 0}],
    "train": {"steps": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
    "reserved": {"count": 32},
    "defenses": [{"name": "finetune", "schedule": {"steps": 2, "batch_size": 16}}],
    "detections": ["spectral"],
    "seeds": [0],
}
"""The config of a study that takes a few seconds."""

VALUES: list[Any] = [
    None, "", " ", "x", "None", "true", True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0,
    1e-9, 1e300, -1e300, float("nan"), float("inf"), [], [[]], [None], {}, {"name": 1},
    {"a": {"b": {}}}, {"name": "digits"}, [1, 2, 3], "0x10", "1e3", "2024-13-45", "\u202eabc",
    "a" * 5000, "\x00", "../../etc/passwd", "~nobody-here/x", "<script>alert(1)</script>", "%s%n",
    "null",
]  # fmt: skip
"""Values that replace a value of the config."""

TEXTS: dict[str, bytes] = {
    "deep lists": b"seeds: " + b"[" * 10_000,
    "deep mappings": b"{a: " * 5_000,
    "5,000 digits": b"seeds: [" + b"9" * 5_000 + b"]",
    "a giant in hexadecimal": b"seeds: [0x" + b"f" * 4_000 + b"]",
    "a tag that fails": b"train: {steps: !!int abc}",
    "a tag of Python": b"train: !!python/object/apply:os.system ['touch /tmp/d3jax-was-here']",
    "a date that is none": b"train: {steps: 2024-13-45}",
    "aliases that multiply": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(
        b"%c: &%c [" % (c + 1, c + 1) + b", ".join([b"*%c" % c] * 9) + b"]\n"
        for c in range(97, 106)
    ),
    "an alias of itself": b"train: &a {steps: *a}",
    "an unknown anchor": b"train: *none",
    "a tab": b"train:\n\tsteps: 3",
    "two documents": b"train: {steps: 2}\n---\ntrain: {steps: 3}",
    "UTF-16": "train: {steps: 2}".encode("utf-16"),
    "no UTF-8": b"train: {steps: \xff\xfe}",
    "NUL": b"train: {steps: \x00}",
    "empty": b"",
    "a comment alone": b"# nothing\n",
    "a list": b"- 1\n- 2",
    "a number": b"3",
    "JSON": b'{"train": {"steps": 2}, "dataset": "digits", "model": "small"}',
    "a key that is a number": b"3: 4",
    "a key that is a list": b"? [1, 2]\n: 3",
    "a key twice": b"train: {steps: 2}\ntrain: {steps: 3}",
    "binary": bytes(range(256)) * 4,
    "a sweep of a million": b"attacks: [{name: badnets, sweep: {target: ["
    + b"0," * 1_000 + b"], rate: [" + b"0.1," * 1_000 + b"]}}]",
    "a sweep whose key is a number": b"attacks: [{name: badnets, sweep: {3: [1]}}]",
}  # fmt: skip
"""Files with invalid or unusual YAML."""

WORDS: list[list[str]] = [
    ["--train"], ["--train.steps"], ["--train.steps="], ["--train.steps", "["], ["--.steps", "3"],
    ["--train..steps", "3"], ["--train.", "3"], ["--=3"], ["--", "3"], ["-x"], ["stray"],
    ["--train.steps", "3", "stray"], ["--workdir", ""], ["--workdir", "/proc/1/x"],
    ["--workdir", "~nobody-here/x"], ["--workdir", "/dev/null/x"],
    ["--workdir", "a\x01b" * 200], ["--workdir", "/dev/null"], ["--part", "0/2"], ["--part", "a"],
    ["--part", "1/1000000000000"], ["--part", "99999999999999999999/99999999999999999999"],
    ["--list", "nope"], ["--list", "badnets", "--check"], ["--distributed", "x"],
    ["--distributed", "host:port,1,1"], ["--distributed", "127.0.0.1:99999,2,0"], ["--config"],
    ["--config", ""], ["--config", "/"], ["--config", "/dev/null"], ["--config", "nope.yaml"],
    ["--config", "\udcff.yaml"], ["--report", "--check"], ["--seeds", "[0,0]"], ["--seeds", "0"],
    ["--attacks.0", "null"], ["--attacks.5.rate", "0.1"], ["--attacks.-1.rate", "0.1"],
    ["--attacks.0.sweep.rate", "[0.1]"], ["--dataset", "digits:3"], ["--dataset", "cifar10"],
    ["--dataset", "tfds:"], ["--dataset", "tfds:../x"], ["--dataset", "tfds:CIFAR10"],
    ["--defenses.0.schedule.optimizer.lr", "nan"], ["--loop.devices", "99"],
    ["--profile", "/dev/null/x"], ["--cache", "/dev/null/x"], ["--model", "resnet"],
    ["--model.checkpoint", "nope"], ["--model.checkpoint", "/dev/zero"], ["--model.ignore", "x"],
]  # fmt: skip
"""Words of invalid or unusual command lines."""

ENVIRONMENTS: list[dict[str, str]] = [
    {"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "foo"}, {"JAX_PLATFORMS": "tpu"},
    {"JAX_PLATFORMS": "CPU"}, {"D3JAX_CACHE": "/dev/null/x"}, {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"}, {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"COLUMNS": "1"}, {"COLUMNS": "x"}, {"TERM": "dumb"}, {"HOME": "/nope"}, {"TMPDIR": "/nope"},
    {"MPLBACKEND": "nope"},
]  # fmt: skip
"""Odd environment variables."""


class Odd(NamedTuple):
    """An odd input of the command.

    `kind` is its group and `what` describes it. `words` are added to the command line, and
    `environment` holds environment variables.
    """

    kind: str
    what: str
    words: list[str]
    environment: Mapping[str, str] = MappingProxyType({})


def with_config(kind: str, what: str, folder: Path, config: Any, *words: str) -> Odd:
    """Write a config and return the input that runs it.

    `config` is data for YAML, or the bytes of the file. `words` are added to the command line.
    """
    path = folder / "study.yaml"
    if isinstance(config, bytes):
        path.write_bytes(config)
    else:
        path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf8")
    return Odd(kind, what, ["--config", str(path), *words])


def odd_value(chance: random.Random, folder: Path) -> Odd:
    """Make a config with one value replaced."""
    config = copy.deepcopy(BASE)
    place, holder, key = chance.choice(list(_places(config)))
    value = chance.choice(VALUES)
    holder[key] = value
    return with_config("value", f"{place}: {value!r:.40}", folder, config)


def odd_key(chance: random.Random, folder: Path) -> Odd:
    """Make a config with one key misspelt or of another type."""
    config = copy.deepcopy(BASE)
    places = [one for one in _places(config) if isinstance(one[1], dict)]
    place, holder, key = chance.choice(places)
    new = chance.choice(
        [key[:-1] or "x", key.upper(), f" {key}", 3, None, True, f"{key}.{key}", "<b>", "\u202e"]
    )
    holder[new] = holder.pop(key)
    return with_config("key", f"{place} as {new!r}", folder, config)


def odd_setting(chance: random.Random, folder: Path) -> Odd:
    """Make a config with an odd value of any setting of a component or of the study.

    Numbers mostly become other numbers, because those pass the check of types.
    """
    from d3jax.config.loading import describe
    from d3jax.config.study import StudyConfig
    from d3jax.study.registries import REGISTRIES

    config = copy.deepcopy(BASE)
    section = chance.choice(["attacks", "defenses", "detections", "evolutions", "models", "study"])
    name = "" if section == "study" else chance.choice(sorted(REGISTRIES[section]))
    settings = describe(REGISTRIES[section][name] if name else StudyConfig)
    if not settings:
        return odd_setting(chance, folder)
    setting, default, _ = chance.choice(settings)
    usual = yaml.safe_load(default)
    value = chance.choice(VALUES)
    if isinstance(usual, (int, float)) and chance.random() < 0.8:
        value = chance.choice([0, 1, 2, 3, 7, 1e-12, 0.999, 1.0, 100.0, 10**4, 10**9, 2**62, 1e38])
    if name:
        entry: dict[str, Any] = {"name": name}
        _put(entry, setting, value)
        config["model" if section == "models" else section] = (
            entry if section == "models" else [entry]
        )
        config |= {"fresh": 0.5} if section == "evolutions" else {}
    else:
        _put(config, setting, value)
    what = f"{section} {name} {setting}: {value!r:.40}".replace("  ", " ")
    return with_config("setting", what, folder, config)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in nested mappings."""
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


def odd_text(chance: random.Random, folder: Path) -> Odd:
    """Make a config file from one of `TEXTS`."""
    what = chance.choice(sorted(TEXTS))
    return with_config("YAML", what, folder, TEXTS[what])


def noisy_text(chance: random.Random, folder: Path) -> Odd:
    """Make the YAML of a study with one to four bytes changed, lost or doubled."""
    text = bytearray(yaml.safe_dump(BASE).encode())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text))
        change = chance.choice(["changed", "lost", "doubled"])
        text[at : at + 1] = {
            "changed": bytes([chance.randrange(256)]),
            "lost": b"",
            "doubled": text[at : at + 1] * 2,
        }[change]
    return with_config("YAML with noise", "one to four bytes", folder, bytes(text))


def odd_words(chance: random.Random, folder: Path) -> Odd:
    """Make a command line with one of `WORDS`."""
    words = chance.choice(WORDS)
    odd = with_config("command line", " ".join(words)[:60], folder, BASE)
    return odd._replace(words=[*odd.words, *(word.replace("\x00", "") for word in words)])


def odd_override(chance: random.Random, folder: Path) -> Odd:
    """Make a command line that replaces one value of the config."""
    place, _, _ = chance.choice(list(_places(BASE)))
    value = str(chance.choice(VALUES)).replace("\x00", "\\0")
    return with_config("override", f"--{place} {value!r:.40}", folder, BASE, f"--{place}", value)


def odd_surroundings(chance: random.Random, folder: Path) -> Odd:
    """Make an unchanged study that runs in one of the `ENVIRONMENTS`."""
    environment = chance.choice(ENVIRONMENTS)
    odd = with_config("environment", str(environment), folder, BASE)
    return odd._replace(environment=environment)


def odd_size(chance: random.Random, folder: Path) -> Odd:
    """Make a config with a size that is too large for any machine."""
    config = copy.deepcopy(BASE)
    giant = chance.choice([10**7, 10**9, 10**12, 2**62])
    section, setting, value = chance.choice([
        ("dataset", "size", giant), ("dataset", "train", giant), ("dataset", "test", giant * 1000),
        ("dataset", "classes", giant), ("dataset", "channels", giant), ("dataset", "shift", giant),
        ("train", "batch_size", giant), ("reserved", "count", giant), ("model", "width", giant),
        ("model", "depth", giant), ("dataset", "digits", giant * 8),
    ])  # fmt: skip
    if section == "model":
        names = {
            "width": ["preact_resnet18", "vgg19_bn", "convnext", "wide_resnet", "vit"],
            "depth": ["vit", "wide_resnet"],
        }
        config["model"] = {"name": chance.choice(names[setting]), setting: value}
    elif setting == "digits":
        config["dataset"] = {"name": "digits", "size": value}
    else:
        config[section] = {**config[section], setting: value}
    return with_config("size", f"{section}.{setting}: {value:g}", folder, config)


def _places(tree: Any, path: str = "") -> Any:
    """Yield (dotted key, holder, key) of every value in nested mappings and lists."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield f"{path}{key}", tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value, f"{path}{key}.")


CONFIGS = [
    odd_value, odd_key, odd_setting, odd_setting, odd_setting, odd_text, noisy_text, odd_words,
    odd_override, odd_surroundings, odd_size,
]  # fmt: skip
"""Makers of odd configs and command lines, each a function `maker(chance, folder) -> Odd`."""
