"""A model that was trained elsewhere, read from a checkpoint of ours, a `.safetensors` or a PyTorch file."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..config.study import Choice
from ..core.errors import AttackError, CheckpointError, names
from ..core.paths import user_path
from ..core.random import stream
from ..core.types import Attack, Model, Variables
from ..runtime import checkpoint
from . import from_torch, read_tensors
from .convert import check_weights


class ExternalModel(NamedTuple):
    """A model that was not trained here: its `variables`, the tensors of the `trigger` that lay beside them (mostly none) and what it was
    made by (`about`: the attack's name and settings), the digest of variables and trigger (`contents`), and a line on how the file was
    read."""

    variables: Variables
    trigger: dict[str, jax.Array]
    about: dict[str, Any]
    contents: str
    text: str


def read_external_model(choice: Choice, net: Model) -> ExternalModel:
    """The model at `choice.checkpoint` of the architecture `net`.

    A folder is an Orbax checkpoint of ours, or one in which it lies as `model`: a backdoored model with its trigger, or a repaired
    one; or one of Hugging Face, with `model.safetensors` or `pytorch_model.bin`. Raises `CheckpointError` where it is missing, damaged, of another architecture, or holds weights that are no numbers.
    """
    path = user_path(choice.checkpoint, "model.checkpoint")
    if not path.exists():
        raise CheckpointError(f"model.checkpoint: {path}: no such file or folder")
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_dir():
        tensors = without(read_tensors(file, choice.checkpoint_key), choice.ignore, str(file))
        variables, report = from_torch(tensors, choice.name, choice.config, net, str(file))
        return ExternalModel(
            variables, {}, {}, checkpoint.digest(variables), f"{file}: {report.text}"
        )
    folder = path / "model" if (path / "model").is_dir() else path
    if not (folder / "orbax.checkpoint").exists():  # Orbax's own mark
        raise CheckpointError(
            f"model.checkpoint: {path}: no checkpoint of d3jax; want a folder in <workdir>/checkpoints, or one with {names(FILES)}"
        )
    like = jax.eval_shape(net.init, jax.random.key(0))
    checkpoint.check_same(
        path, like, _within("variables.", checkpoint.shapes(folder))
    )  # before all of it is read
    flat, note = checkpoint.read(folder)
    trigger = {
        name.removeprefix("trigger."): value
        for name, value in flat.items()
        if name.startswith("trigger.")
    }
    flat = _within("variables.", flat)
    check_weights(flat, str(path))
    text = f"{path}: {len(flat)} tensors match" + (", with a trigger" if trigger else "")
    contents = checkpoint.digest((flat, trigger))
    return ExternalModel(
        checkpoint.unflatten(flat, like), trigger, note.get("about", {}), contents, text
    )


FILES = ("model.safetensors", "pytorch_model.bin")
"""What a model's file is called in a folder of Hugging Face, the first that is there."""


def without(
    tensors: dict[str, np.ndarray], globs: Sequence[str], origin: str
) -> dict[str, np.ndarray]:
    """The tensors whose names match none of the globs. Raises `CheckpointError` for a glob that matches none."""
    for glob in globs:
        found = [name for name in tensors if fnmatch.fnmatchcase(name, glob)]
        if not found:
            raise CheckpointError(
                f"{origin}: model.ignore: {glob!r} matches none of its tensors, such as {names(list(tensors)[:3])}"
            )
        tensors = {name: value for name, value in tensors.items() if name not in found}
    return tensors


def _within(prefix: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """What lies under a prefix; all of it where nothing does."""
    inside = {
        name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)
    }
    return inside or dict(flat)


def trigger_for(
    external: ExternalModel, attack: Attack, recipe: Mapping[str, Any], key: jax.Array
) -> Any:
    """The trigger of `attack`, which an attack run's `recipe` names with its settings: the one that lay beside the model, if that attack with
    these settings made it, else the one that `key` gives.

    Raises `AttackError` where the attack finds or trains its trigger, and none of its own lay there.
    """
    made_by, wanted = external.about, {name: recipe[name] for name in ("attack", "settings")}
    if external.trigger and made_by == wanted:
        return checkpoint.unflatten(external.trigger, jax.eval_shape(attack.init, key))
    if attack.preparation or attack.optimizer:
        there = (
            f"the trigger there is of {made_by['attack']}, or of other settings"
            if external.trigger and made_by
            else "no trigger lies there"
        )
        raise AttackError(
            "makes its trigger before or with the training, so it must lie beside the model of model.checkpoint: "
            f"{there}; take a checkpoint of ours that has it, or the attack unknown"
        )
    return attack.init(stream(key, "trigger"))
