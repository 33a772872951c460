"""Models in one file that loads alone, without a study: architecture, weights and normalisation.

`python -m d3jax.export` writes such a file, and `d3jax.load_model` reads it. A repaired network may
have more than its architecture: a polarizer (NPD), or caps (UNIT). The file holds them too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .config.loading import build, to_mapping
from .config.stored_model import header_text
from .config.study import Choice
from .core.errors import CheckpointError, ConfigError, names
from .core.paths import user_path
from .core.types import DataInfo, Model, Variables
from .interop import from_torch, read_tensors, to_torch
from .interop.external_model import ABOUT, TRIGGER, write_external_model
from .runtime.checkpoint import describe, flatten, unflatten
from .study.registries import DEFENSES, MODELS

MORE = "more."
"""The prefix of the names of tensors that a repair added to the architecture."""


class LoadedModel(NamedTuple):
    """A model that is ready to use: the network, its variables, and the facts about its images.

    `model.apply(variables, images, train=False).logits` are the logits of float images in [0, 1].
    """

    model: Model
    variables: Variables
    info: DataInfo


def write_model(
    path: str | Path,
    variables: Variables,
    choice: Choice,
    info: DataInfo,
    defense: Choice | None = None,
    trigger: Any = (),
    recipe: Mapping[str, Any] | None = None,
) -> int:
    """Write a model to a `.safetensors` file that loads alone; return its number of tensors.

    `choice` is the architecture, and `defense` the repair that changed it, if one did. The tensors
    of the architecture have PyTorch's names. `trigger` and `recipe` are those of a victim, see
    `interop.external_model.write_external_model`. Raises `CheckpointError` if it cannot be written,
    or if the architecture has no names in PyTorch.
    """
    plain = MODELS[choice.name][1](choice.config, info, jnp.float32)
    flat, own = flatten(variables), describe(jax.eval_shape(plain.init, jax.random.key(0)))
    inner = unflatten({name: flat[name] for name in own}, _like(plain))
    tensors = to_torch(inner, choice.name, choice.config)
    tensors |= {f"{MORE}{name}": np.asarray(flat[name]) for name in flat if name not in own}
    about = {
        "model": {"name": choice.name, "settings": to_mapping(choice.config)},
        "defense": defense and {"name": defense.name, "settings": to_mapping(defense.config)},
        "info": dataclasses.asdict(info),
    }
    text = {ABOUT: json.dumps(about, sort_keys=True)}
    write_external_model(user_path(path), tensors, trigger, recipe or {}, text)
    return len(tensors)


def load_model(path: str | Path) -> LoadedModel:
    """Read a model that `python -m d3jax.export` or `write_model` wrote.

    Raises `CheckpointError` if the file is missing, damaged, or was not written by them.
    """
    file = user_path(path)
    tensors, text = read_tensors(file), header_text(file, ABOUT)
    if text is None:
        raise CheckpointError(
            f"{file}: does not say which network it is of, as a file of d3jax.export does; "
            "a study reads it by model.checkpoint"
        )
    try:
        about = json.loads(text)
        info = DataInfo(**{key: _tuple(value) for key, value in about["info"].items()})
        chosen, change = (_entry(about[part]) for part in ("model", "defense"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file}: its description of the network is damaged") from error
    if chosen is None:
        raise CheckpointError(f"{file}: its description of the network is damaged")
    config = _built(MODELS, chosen, f"{file}: ")
    plain = MODELS[chosen[0]][1](config, info, jnp.float32)
    inner = {key: value for key, value in tensors.items() if not key.startswith((TRIGGER, MORE))}
    variables, _ = from_torch(inner, chosen[0], config, plain, str(file))
    network = plain
    if change is not None:
        network = DEFENSES[change[0]][1](_built(DEFENSES, change, f"{file}: "), info).network(plain)
    added = {
        key.removeprefix(MORE): jnp.asarray(value)
        for key, value in tensors.items()
        if key.startswith(MORE)
    }
    own, wanted = flatten(variables), describe(_like(network))
    missing = [key for key in wanted if key not in own | added]
    if missing:
        raise CheckpointError(f"{file}: lacks tensors of the repaired network: {names(missing)}")
    unknown = [f"{MORE}{key}" for key in added if key in own or key not in wanted]
    if unknown:
        raise CheckpointError(f"{file}: the network has no such tensors: {names(unknown)}")
    return LoadedModel(network, unflatten(own | added, _like(network)), info)


def _like(model: Model) -> Variables:
    return jax.eval_shape(model.init, jax.random.key(0))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _entry(found: Any) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the settings of a component that a file describes; None for none."""
    return None if found is None else (str(found["name"]), dict(found["settings"]))


def _built(registry: Mapping[str, Any], entry: tuple[str, Mapping[str, Any]], origin: str) -> Any:
    """Return the config of an entry (name and settings), by its registry."""
    name, settings = entry
    if name not in registry:
        raise ConfigError(f"{origin}{name!r} is not one of {names(registry)}")
    return build(registry[name][0], settings, origin)
