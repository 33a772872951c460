"""Model files that d3jax exported: the shelf of victims, and the recipe in a file's header.

A `.safetensors` that `d3jax.export` wrote holds the recipe of the victim: data, architecture,
attack, training and seed. A config can name such a file in place of an attack. Does not import jax.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, did_you_mean, names, refuse
from ..core.paths import user_path

VICTIM = "victim:"
"""The prefix of an address on the shelf, such as victim:wrn/badnets-10/0."""
RECIPE = "d3jax"
"""The key in a file's metadata that holds the recipe, as JSON."""
PARTS = {"data": str, "model": str, "net": dict, "attack": str, "settings": dict, "seed": int}
"""The keys that every recipe has, with the types of their values."""
MOST_HEADER = 100 * 2**20
"""Most bytes that the header of a `.safetensors` may have, which is the format's own limit."""


def shelf() -> Path:
    """Return the folder of the shelf of victims: $D3JAX_VICTIMS, else that of the repository."""
    there = os.environ.get("D3JAX_VICTIMS")
    return Path(there) if there else Path(__file__).parents[2] / "benchmarks" / "victims"


def model_path(text: str, name: str) -> Path:
    """Return the path of a model that a config names, by path or by its address on the shelf.

    `name` is the key in the config. Raises a `ConfigError` that begins with it if the shelf, or an
    address on it, does not exist.
    """
    if not text.startswith(VICTIM):
        return user_path(text, name)
    folder, address = shelf(), text.removeprefix(VICTIM)
    if not folder.is_dir():
        raise ConfigError(
            f"{name}: {text}: there is no shelf of victims at {folder}; set D3JAX_VICTIMS to the "
            "folder benchmarks/victims of d3jax's repository"
        )
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.safetensors"))
    }
    if address not in found:
        raise ConfigError(
            f"{name}: {text}: the shelf has no such victim; it has {names(found) or 'none'}"
            f"{did_you_mean(address, found)}"
        )
    return found[address]


def victim_label(text: str) -> str:
    """Return the label of a victim of the shelf: victim:wrn/sig-10/0 gives sig-10, /1 sig-10-1."""
    *_, attack, seed = text.removeprefix(VICTIM).split("/")
    return attack if seed == "0" else f"{attack}-{seed}"


def stored_recipe(path: Path) -> dict[str, Any] | None:
    """Return the recipe in the header of a `.safetensors` file; None if it has none.

    Only the header is read. Raises `ConfigError` if the recipe is damaged.
    """
    text = header_text(path, RECIPE)
    return None if text is None else parse_recipe(text, str(path))


def header_text(path: Path, key: str) -> str | None:
    """Return the text that the header of a `.safetensors` file has at a key; None without one.

    It is also None for a file that is damaged, of another kind, or not there.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
            size = int.from_bytes(start[:8], "little")
            if start[8:] != b"{" or size > MOST_HEADER:
                return None
            header = json.loads(b"{" + file.read(size - 1))
    except (OSError, ValueError):
        return None  # the reader of the tensors says why
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get(key) if isinstance(metadata, dict) else None
    return text if isinstance(text, str) else None


def parse_recipe(text: str, origin: str) -> dict[str, Any]:
    """Return the recipe that a model file holds as JSON; raise `ConfigError` if it is damaged."""
    try:
        recipe = json.loads(text)
    except ValueError:
        recipe = None
    found = recipe if isinstance(recipe, dict) else {}
    if not all(isinstance(found.get(part), kind) for part, kind in PARTS.items()):
        raise ConfigError(f"{origin}: the recipe that d3jax stored in it is damaged")
    return found


def with_victims(tree: dict[str, Any], *, attacks: bool, model: bool) -> dict[str, Any]:
    """Return a study's settings with what follows from the victims of the shelf that it reads.

    `attacks` and `model` say whether the config gives the attacks and the name of the model. If it
    does not, the attack is that of the victim which `model.checkpoint` names, and the architecture
    is that of the first victim.
    """
    net = tree["model"] if isinstance(tree["model"], dict) else {}
    own = net.get("checkpoint")
    named = [(own, "model.checkpoint")]
    if not attacks and _is_address(own):
        tree = {**tree, "attacks": [own]}
    entries = tree["attacks"] if isinstance(tree["attacks"], list) else []
    for i, entry in enumerate(entries):
        pair = entry if isinstance(entry, dict) else {"name": entry}
        named.append((pair.get("checkpoint") or pair.get("name"), f"attacks.{i}"))
    victims = [(str(text), key) for text, key in named if _is_address(text)]
    recipe = None if model or not victims else stored_recipe(model_path(*victims[0]))
    if recipe is None:
        return tree
    given = {key: value for key, value in net.items() if key != "name"}
    return {**tree, "model": {"name": recipe["model"], **recipe["net"], **given}}


def _is_address(text: Any) -> bool:
    return isinstance(text, str) and text.startswith(VICTIM)


def entry_of_file(entry: dict[str, Any], path: str) -> dict[str, Any]:
    """Return an entry of `attacks` with the name and settings that its model file holds.

    The file is named by `checkpoint`, or by an address on the shelf in place of the name. Settings
    that the entry gives must be those of the file.
    """
    if _is_address(entry.get("name")):
        entry = {**entry, "checkpoint": entry["name"]}
        del entry["name"]
    if not isinstance(entry.get("checkpoint"), str) or "name" in entry:
        return entry
    file = model_path(entry["checkpoint"], path)
    recipe = stored_recipe(file)
    if recipe is None:
        raise ConfigError(f"{path}: {file} does not say which attack it is of; give its `name`")
    on_shelf = _is_address(entry["checkpoint"])
    label = {"label": victim_label(entry["checkpoint"])} if on_shelf else {}
    given = {"name": recipe["attack"], **label, **recipe["settings"]}
    for key in entry.keys() & recipe["settings"].keys():
        refuse(
            entry[key] != recipe["settings"][key],
            f"{path}.{key}: {entry[key]!r} is not that of the model, whose {key} is "
            f"{recipe['settings'][key]!r} ({file})",
        )
    return given | entry
