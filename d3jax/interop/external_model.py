"""Reading of an external model: a d3jax checkpoint, a `.safetensors` or a PyTorch file."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config.stored_model import RECIPE, header_text, model_path, stored_recipe
from ..config.study import Choice
from ..core.errors import AttackError, CheckpointError, names
from ..core.random import stream
from ..core.types import Attack, Model, Variables
from ..runtime import checkpoint
from . import from_torch, read_tensors, write_tensors
from .convert import check_weights

ABOUT = "d3jax.model"
"""The key of the JSON text in a model file's header that says its network."""
TRIGGER = "trigger."
"""The prefix of the names of a trigger's tensors, beside those of the model."""


class ExternalModel(NamedTuple):
    """A model that is read and not trained, with the trigger that was stored with it.

    `trigger` has the tensors of that trigger, and is empty for most models. `about` has the recipe
    of a model that d3jax trained, or of an earlier version of d3jax the attack's name and settings
    only. `contents` is the digest of variables and trigger. `text` is a line on how the file was
    read.
    """

    variables: Variables
    trigger: dict[str, jax.Array]
    about: dict[str, Any]
    contents: str
    text: str

    def knows_training(self, attack: str, settings: Mapping[str, Any], training_set: str) -> bool:
        """Return whether the poisoned training set of this model can be made again.

        It can if d3jax trained the model with the named `attack` and `settings`, on the images and
        labels with the fingerprint `training_set`.
        """
        wanted = {"attack": attack, "settings": dict(settings), "training_set": training_set}
        same = all(self.about.get(key) == value for key, value in wanted.items())
        return same and "train" in self.about


def read_external_model(choice: Choice, net: Model) -> ExternalModel:
    """Read the model trained elsewhere that `choice.checkpoint` names, as an `ExternalModel`.

    Its architecture is `net`. A folder may be an Orbax checkpoint of d3jax, or may hold one as
    `model`. This is a backdoored model with its trigger, or a repaired model. It may also be a
    Hugging Face folder, with `model.safetensors` or `pytorch_model.bin`. Raises `CheckpointError`
    where the model is missing, damaged, of another architecture, or has weights that are not
    finite.
    """
    path = model_path(choice.checkpoint, "model.checkpoint")
    if not path.exists():
        raise CheckpointError(f"model.checkpoint: {path}: no such file or folder")
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_dir():
        return _read_file(file, choice, net)
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
    _refuse_changed(path, note.get("changed_by", ""))
    trigger = _trigger_in(flat)
    flat = _within("variables.", flat)
    check_weights(flat, str(path))
    text = f"{path}: {len(flat)} tensors match" + (", with a trigger" if trigger else "")
    contents = checkpoint.digest((flat, trigger))
    return ExternalModel(
        checkpoint.unflatten(flat, like), trigger, note.get("about", {}), contents, text
    )


def _read_file(file: Path, choice: Choice, net: Model) -> ExternalModel:
    """Read an external model from a `.safetensors` or PyTorch file."""
    about, tensors = stored_recipe(file), read_tensors(file, choice.checkpoint_key)
    _refuse_changed(file, _changed_by(file))
    trigger = _trigger_in(tensors) if about else {}
    tensors = {name: value for name, value in tensors.items() if not about or _is_model(name)}
    tensors = without(tensors, choice.ignore, str(file))
    variables, report = from_torch(tensors, choice.name, choice.config, net, str(file))
    text = f"{file}: {report.text}" + (", with a trigger" if trigger else "")
    contents = checkpoint.digest((variables, trigger) if trigger else variables)
    return ExternalModel(variables, trigger, about or {}, contents, text)


def _changed_by(file: Path) -> str:
    """Return the name of the defence that changed the network of a model file; "" if none did."""
    try:
        found = json.loads(header_text(file, ABOUT) or "{}")["defense"]["name"]
    except (ValueError, TypeError, KeyError):  # no such text, no defence, or a damaged text
        return ""
    return str(found)


def _refuse_changed(path: Path, defense: str) -> None:
    """Raise `CheckpointError` if a defence changed the network of a stored model."""
    if defense:
        raise CheckpointError(
            f"model.checkpoint: {path}: the defence {defense} changed the network of this model, "
            "which a study cannot build; export it, and read the file with d3jax.load_model"
        )


def write_external_model(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    trigger: Any,
    recipe: Mapping[str, Any],
    texts: Mapping[str, str] = {},
) -> None:
    """Write a model under PyTorch's names with its `trigger` (a pytree) and the victim's `recipe`.

    The file is a `.safetensors`. `read_external_model` reads all three, and other programs the
    tensors. `texts` are more texts for the header, by name. An empty recipe is left out. Raises
    `CheckpointError` if it cannot be written.
    """
    flat = {
        f"{TRIGGER}{name}": np.asarray(value) for name, value in checkpoint.flatten(trigger).items()
    }
    own = {RECIPE: json.dumps(recipe, sort_keys=True)} if recipe else {}
    write_tensors(path, {**tensors, **flat}, own | dict(texts))


def _is_model(name: str) -> bool:
    return not name.startswith(TRIGGER)


def _trigger_in(flat: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the tensors of the trigger among those of a model's file, without their prefix."""
    return {
        name.removeprefix(TRIGGER): jnp.asarray(value)
        for name, value in flat.items()
        if not _is_model(name)
    }


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
    made_by = {name: external.about.get(name) for name in ("attack", "settings")}
    if external.trigger and made_by == {name: recipe[name] for name in made_by}:
        like = jax.eval_shape(attack.init, key)
        wanted = {
            name: (leaf.shape, leaf.dtype) for name, leaf in checkpoint.describe(like).items()
        }
        there = {name: (leaf.shape, leaf.dtype) for name, leaf in external.trigger.items()}
        if there != wanted:
            raise CheckpointError(
                f"{external.text}: the trigger there is not one of {made_by['attack']}"
            )
        return checkpoint.unflatten(external.trigger, like)
    if attack.preparation or attack.optimizer:
        there = (
            f"the trigger there is of {made_by['attack']}, or of other settings"
            if external.trigger and external.about
            else "no trigger is there"
        )
        raise AttackError(
            "makes its trigger before or with the training, so model.checkpoint must hold it: "
            f"{there}; take a d3jax checkpoint that has it, or the attack unknown"
        )
    return attack.init(stream(key, "trigger"))


def _shapes(flat: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (leaf.shape, leaf.dtype) for name, leaf in flat.items()}
