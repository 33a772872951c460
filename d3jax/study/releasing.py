"""The poisoned data set of an attack run, as it is written for other people's tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.errors import CheckpointError, ConfigError, did_you_mean, names
from ..core.random import stream
from ..core.types import Prepared, Split
from ..data.batched import batched_map
from ..data.released import Released, released_of
from ..metrics.attack_success import triggered_images
from ..runtime import checkpoint
from ..training.poisoned_set import poisoned_split
from .context import StudyContext
from .graph import make_nodes
from .nodes.base import Node
from .nodes.victim import VictimNode

BATCH = 500
"""Test images that are stamped at once."""


def release(context: StudyContext, name: str) -> Released:
    """Return the poisoned training set and the triggered test images of a study's attack.

    `name` is ATTACK/seedS, such as badnets/seed0. An attack that prepares its trigger must have
    done so in the run folder of the study. Other attacks need no run.

    Raises `ConfigError` if the study has no such attack, `CheckpointError` if its trigger is not
    prepared, and `AttackError` if the attack has no poisoned set (`poisoned_split`).
    """
    victims = {
        node.name.rpartition("/")[0]: node
        for node in make_nodes(context)
        if isinstance(node, VictimNode)
    }
    if name not in victims:
        raise ConfigError(
            f"{name!r} is no attack of the study, which has {names(victims)}"
            f"{did_you_mean(name, victims)}"
        )
    node = victims[name]
    run, dataset = node.run, context.dataset
    if not run.attacked and not run.poisoned:
        raise ConfigError(f"{name!r} poisons nothing, so there is no poisoned set to write")
    prepared = _prepared(node.prepared) if node.prepared else None
    poisoned, flags = poisoned_split(run.key, run.attack, dataset.train, prepared)
    trigger = prepared.trigger if prepared else run.attack.init(stream(run.key, "trigger"))
    wanted = np.asarray(run.attack.relabel(jnp.arange(dataset.info.num_classes)))

    def stamped(images: Any) -> Any:
        return triggered_images(run.attack, trigger, jnp.asarray(images))

    images = batched_map(stamped, np.asarray(dataset.test.images), batch_size=BATCH)
    return released_of(poisoned, flags, dataset, Split(images, dataset.test.labels), wanted)


def _prepared(node: Node) -> Prepared:
    """Return the result of an attack's preparation, which the study must have finished."""
    if not checkpoint.exists(node.folder / "model"):
        raise CheckpointError(f"{node.name} is not finished ({node.folder}): run the study first")
    return checkpoint.load(node.folder / "model", node.like())[0]


def write_pictures(folder: Path, released: Released) -> int:
    """Write a released set as PNG pictures and a manifest; return the number of pictures.

    The layout is train/CLASS/ROW.png with the labels as released, test/CLASS/ROW.png, and
    triggered/CLASS/ROW.png by the class that the attacker wants. manifest.csv has a line for each
    picture: file, part, row, label, true label, and whether it is poisoned or a cover.
    """
    from PIL import Image

    count = len(np.unique(released.test.labels))
    classes = released.classes or tuple(map(str, range(count)))
    lines = ["file,part,row,label,true_label,poisoned,cover"]
    true, labels = np.asarray(released.original_labels), np.asarray(released.train.labels)
    rows = np.arange(len(labels))
    parts = [
        ("train", released.train.images, rows, labels, true, released.poisoned, released.covers),
        _plain("test", released.test.images, np.asarray(released.test.labels)),
    ]
    if released.triggered_images is not None:
        shown = np.asarray(released.triggered_rows)
        own = np.asarray(released.test.labels)[shown]
        wanted = np.asarray(released.wanted_labels)[own]
        flags = np.ones(len(shown), bool)
        given = (released.triggered_images, shown, wanted, own, flags, ~flags)
        parts.append(("triggered", *given))
    for part, images, rows, labels, true, poisoned, covers in parts:
        for row, image, *facts in zip(rows, images, labels, true, poisoned, covers, strict=True):
            name = f"{part}/{_folder_name(classes[facts[0]])}/{row:06d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(image)
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(folder / name)
            lines.append(",".join(map(str, (name, part, row, *map(int, facts)))))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines) - 1


def _plain(part: str, images: Any, labels: np.ndarray) -> tuple[Any, ...]:
    """Return a part of a released set that is not poisoned, as `write_pictures` takes it."""
    none = np.zeros(len(labels), bool)
    return part, images, np.arange(len(labels)), labels, labels, none, none


def _folder_name(name: str) -> str:
    """Return the name of a class as the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_ " else "_" for letter in name)
