"""Reading of a model trained elsewhere: a d3jax checkpoint, a `.safetensors` or a PyTorch file."""

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
    """A model that was trained elsewhere, with the trigger that was stored with it.

    `trigger` has the tensors of that trigger, and is empty for most models. `about` has the
    attack's name and settings. `contents` is the digest of variables and trigger. `text` is a line
    on how the file was read.
    """

    variables: Variables
    trigger: dict[str, jax.Array]
    about: dict[str, Any]
    contents: str
    text: str


def read_external_model(choice: Choice, net: Model) -> ExternalModel:
    """Read the model trained elsewhere that `choice.checkpoint` names, as an `ExternalModel`.

    Its architecture is `net`. A folder may be an Orbax checkpoint of d3jax, or may hold one as
    `model`. This is a backdoored model with its trigger, or a repaired model. It may also be a
    Hugging Face folder, with `model.safetensors` or `pytorch_model.bin`. Raises `CheckpointError`
    where the model is missing, damaged, of another architecture, or has weights that are not
    finite.
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
    if not (folder / "orbax.checkpoint").exists():  # the file that marks an Orbax checkpoint
        raise CheckpointError(
            f"model.checkpoint: {path}: no checkpoint of d3jax; "
            f"want a folder in <workdir>/checkpoints, or one with {names(FILES)}"
        )
    like = jax.eval_shape(net.init, jax.random.key(0))
    # The shapes are checked before all of it is read.
    checkpoint.check_same(path, like, _within("variables.", checkpoint.shapes(folder)))
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
"""The names of a model's file in a Hugging Face folder; the first one that exists is read."""


def without(
    tensors: dict[str, np.ndarray], globs: Sequence[str], origin: str
) -> dict[str, np.ndarray]:
    """Return the tensors of a model file whose names match none of the `globs`.

    Raises `CheckpointError` for a glob that matches no tensor.
    """
    for glob in globs:
        found = [name for name in tensors if fnmatch.fnmatchcase(name, glob)]
        if not found:
            raise CheckpointError(
                f"{origin}: model.ignore: {glob!r} matches none of its tensors, "
                f"such as {names(list(tensors)[:3])}"
            )
        tensors = {name: value for name, value in tensors.items() if name not in found}
    return tensors


def _within(prefix: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors whose names begin with a prefix, which is cut off; all if no name does."""
    inside = {
        name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)
    }
    return inside or dict(flat)


def trigger_for(
    external: ExternalModel, attack: Attack, recipe: Mapping[str, Any], key: jax.Array
) -> Any:
    """Return the trigger with which an attack is run on an external model.

    It is the trigger that was stored with the model, if the attack and settings of the attack run's
    `recipe` made it. Otherwise it is the trigger that `key` gives. Raises `AttackError` where the
    attack finds or trains its trigger, and none of its own is stored.
    """
    made_by, wanted = external.about, {name: recipe[name] for name in ("attack", "settings")}
    if external.trigger and made_by == wanted:
        return checkpoint.unflatten(external.trigger, jax.eval_shape(attack.init, key))
    if attack.preparation or attack.optimizer:
        there = (
            f"the trigger there is of {made_by['attack']}, or of other settings"
            if external.trigger and made_by
            else "no trigger is there"
        )
        raise AttackError(
            "makes its trigger before or with the training, so model.checkpoint must hold it: "
            f"{there}; take a d3jax checkpoint that has it, or the attack unknown"
        )
    return attack.init(stream(key, "trigger"))
