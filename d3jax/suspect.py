"""A model that was trained elsewhere walks in: read from a checkpoint of ours, a `.safetensors` or a PyTorch file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax

from . import checkpoint
from .base import Attack, Model, Variables, stream
from .config import Choice, names
from .errors import AttackError, CheckpointError
from .interop import from_torch, read_tensors
from .interop.convert import check_finite


class Suspect(NamedTuple):
    """A model that was not trained here: its `variables`, the tensors of the `trigger` that lay beside them (mostly none), the digest of
    both (`contents`), and a line on how the file was read."""

    variables: Variables
    trigger: dict[str, jax.Array]
    contents: str
    text: str


def read_suspect(choice: Choice, net: Model) -> Suspect:
    """The model at `choice.checkpoint` of the architecture `net`.

    A folder is an Orbax checkpoint of ours, or one in which it lies as `model`: a backdoored model with its trigger, or a repaired
    one. Raises `CheckpointError` where it is missing, damaged, of another architecture, or holds weights that are no numbers.
    """
    path = Path(choice.checkpoint).expanduser()
    if not path.exists():
        raise CheckpointError(f"model.checkpoint: {path}: no such file or folder")
    if not path.is_dir():
        variables, report = from_torch(read_tensors(path), choice.name, choice.config, net, str(path))
        return Suspect(variables, {}, checkpoint.digest(variables), f"{path}: {report.text}")
    flat, trigger = checkpoint.read(path / "model" if (path / "model").is_dir() else path), {}
    if any(name.startswith("variables.") for name in flat):
        trigger = {name.removeprefix("trigger."): value for name, value in flat.items() if name.startswith("trigger.")}
        flat = {name.removeprefix("variables."): value for name, value in flat.items() if name.startswith("variables.")}
    like = jax.eval_shape(net.init, jax.random.key(0))
    checkpoint.check_same(path, like, flat)
    check_finite(flat, str(path))
    text = f"{path}: {len(flat)} tensors match" + (", with a trigger" if trigger else "")
    return Suspect(checkpoint.unflatten(flat, like), trigger, checkpoint.digest((flat, trigger)), text)


def trigger_for(suspect: Suspect, attack: Attack, key: jax.Array) -> Any:
    """The trigger of `attack` for a suspect: the one that lay beside it, if it is of this attack's kind, else the one that `key` gives.

    Raises `AttackError` where the attack finds or trains its trigger, and none lay there.
    """
    like = jax.eval_shape(attack.init, key)
    wanted = checkpoint.describe(like)
    there = {name: (value.shape, value.dtype) for name, value in suspect.trigger.items()}
    if wanted and there == {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}:
        return checkpoint.unflatten(suspect.trigger, like)
    if attack.preparation or attack.optimizer:
        raise AttackError(
            f"makes its trigger before or with the training, and none of its kind ({names(wanted)}) lies beside the model of "
            "model.checkpoint: take a checkpoint of ours that has it, or the attack unknown"
        )
    return attack.init(stream(key, "trigger"))
