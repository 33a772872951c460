"""Functions that reuse, read and save the checkpoints of a study's finished nodes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..core.errors import D3JaxError
from ..core.records import LogRecord
from ..metrics.attack_success import Counts
from ..runtime import checkpoint
from ..runtime.checkpoint import Binding
from ..runtime.files import read_json, remove
from .nodes.base import Artifact, Failure, Inputs, Node, Result


def take_finished(node: Node) -> Artifact | None:
    """Return the `Artifact` saved in a finished node's folder; None if it is missing or damaged.

    A damaged checkpoint is renamed. If the artifact is found, the rolling checkpoints and
    failed.json of earlier runs are deleted.
    """
    path = node.folder / "model"
    if not checkpoint.exists(path):
        return None
    found = checkpoint.load_or_set_aside(path, node.like(), "computing it again", of=binding(node))
    if found is None:
        return None
    node.context.progress.say(f"{node.name}: done before, taken from {node.folder.name}")
    checkpoint.Rolling(node.folder / "steps").clear()
    remove(node.folder / "failed.json")
    return _artifact(node, *found)


def read_finished(node: Node) -> Result:
    """Read a node's `Artifact` from disk, or return a `Failure` if the node is not finished.

    No file is changed.
    """
    path, note = node.folder / "model", node.folder / "failed.json"
    if path.is_dir():
        try:
            return _artifact(node, *checkpoint.load(path, node.like(), binding(node)))
        except D3JaxError as error:
            return Failure(str(error))
    if note.exists():
        found = read_json(note)
        known = isinstance(found, dict) and isinstance(found.get("error"), str)
        return Failure(found["error"] if known else f"{note} is damaged: the error is not known")
    return Failure("no model yet", unfinished=True)


def binding(node: Node) -> Binding:
    """Return the metadata (a dict) that binds a checkpoint to the folder name of a node.

    A checkpoint that names another node is refused when it is loaded.
    """
    return {"node": node.folder.name}


def save_finished(
    node: Node, inputs: Inputs, tree: Any, records: list[LogRecord], members: int, elapsed: float
) -> Artifact:
    """Save what a node computed, with its test counts, as a checkpoint; return the `Artifact`."""
    counts = node.count(inputs, tree)
    note = {
        "counts": counts and {key: values.tolist() for key, values in counts._asdict().items()},
        "seconds": max(elapsed, records[-1].get("seconds", 0.0) if records else 0.0),
        "records": records,
        "environment": node.context.environment,
        "members": members,
        # By this a later study that reads this as an external model knows trigger and poison.
        "about": node.run.recipe | {"training_set": node.context.training_set},
        "changed_by": node.what if node.network is not node.context.model else "",
        **binding(node),
    }
    checkpoint.save(node.folder / "model", tree, note)
    return _artifact(node, tree, note)


def _artifact(node: Node, tree: Any, note: dict[str, Any]) -> Artifact:
    counts = note["counts"]
    counts = counts and Counts(**{key: np.asarray(values) for key, values in counts.items()})
    kept = (note["seconds"], note["records"], note["environment"], note["members"])
    artifact = Artifact(functools.partial(_read_tree, node), counts, *kept)
    artifact.tree = tree
    return artifact


def _read_tree(node: Node) -> Any:
    return checkpoint.load(node.folder / "model", node.like(), binding(node))[0]
