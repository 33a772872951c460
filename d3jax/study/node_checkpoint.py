"""Finished nodes: taken over from their folders, read, and saved."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np

from ..core.errors import D3JaxError
from ..core.records import LogRecord
from ..metrics.attack_success import Counts
from ..runtime import checkpoint
from .nodes.base import Artifact, Failure, Inputs, Node, Result


def take_finished(node: Node) -> Artifact | None:
    """Return what is in a node's folder already; None where there is nothing, or it is damaged."""
    path = node.folder / "model"
    if not checkpoint.exists(path):
        return None
    found = checkpoint.load_or_set_aside(path, node.like(), "computing it again")
    if found is None:
        return None
    node.context.progress.say(f"{node.name}: done before, taken from {node.folder.name}")
    checkpoint.Rolling(node.folder / "steps").clear()
    (node.folder / "failed.json").unlink(missing_ok=True)
    return _artifact(node, *found)


def read_finished(node: Node) -> Result:
    """Return a node as it is, nothing moved: a `Failure` where it is not finished or unreadable."""
    path, note = node.folder / "model", node.folder / "failed.json"
    if path.is_dir():
        try:
            return _artifact(node, *checkpoint.load(path, node.like()))
        except D3JaxError as error:
            return Failure(str(error))
    if note.exists():
        return Failure(json.loads(note.read_text(encoding="utf8"))["error"])
    return Failure("no model yet", unfinished=True)


def save_finished(
    node: Node, inputs: Inputs, tree: Any, records: list[LogRecord], members: int, elapsed: float
) -> Artifact:
    """Count what was computed, save it in the node's folder, and return it."""
    counts = node.count(inputs, tree)
    note = {
        "counts": counts and {key: values.tolist() for key, values in counts._asdict().items()},
        "seconds": max(elapsed, records[-1].get("seconds", 0.0) if records else 0.0),
        "records": records,
        "environment": node.context.environment,
        "members": members,
        # By these a later study knows the trigger of a model it finds alone.
        "about": {key: node.run.recipe[key] for key in ("attack", "settings")},
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
    return checkpoint.load(node.folder / "model", node.like())[0]
