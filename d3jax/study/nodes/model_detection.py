"""What inverted triggers do to a study's models, before and after repairs: what can be measured where nobody knows the real trigger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.images import as_float, as_levels
from ...core.types import Variables
from ...inversion import Trigger, detect, stamp
from ...metrics.attack_success import predict
from ...runtime import checkpoint
from ..attack_run import Cell
from ..context import Lab
from ..executor import Result, Stage
from .repair import task_of

BATCH = 500


def trigger_rows(
    lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result], earlier: Mapping[str, Stage]
) -> list[dict[str, Any]]:
    """The lines of triggers.csv: for every detection the trigger of the flagged class, or where none is flagged the smallest one, and
    for every model of the case which share of the test images of other classes it turns into that class (`turned`), and ACC."""
    rows = []
    for cell in cells:
        if cell.kind != "inversion" or not isinstance(results.get(cell.name), Stage):
            continue
        inverted, case = results[cell.name].tree, cell.case
        found = detect(inverted.norms)
        at = chosen(found.norms, found.flagged)
        label, trigger = (
            int(inverted.labels[at]),
            jax.tree.map(lambda part, at=at: part[at], inverted.trigger),
        )
        for other in cells:
            result = results.get(other.name)
            if (
                other.case is not case
                or other.kind not in ("model", "repair", "training")
                or not isinstance(result, Stage)
            ):
                continue
            variables = variables_of(lab, other, earlier)
            rows.append({
                "attack": case.label, "seed": case.seed, "detection": cell.choice.label, "class": lab.dataset.info.classes[label],
                "flagged": bool(found.flagged[at]), "index": float(found.index[at]), "norm": float(found.norms[at]),
                "defense": other.label, "turned": turned(lab, variables, trigger, label), "acc": result.counts.acc,
            })  # fmt: skip
    return rows


def chosen(norms: np.ndarray, flagged: np.ndarray) -> int:
    """Which of the triggers is looked at: the smallest of the flagged, or of all where none is."""
    norms = np.asarray(norms)
    return int(np.argmin(np.where(flagged, norms, np.inf) if np.any(flagged) else norms))


def variables_of(lab: Lab, cell: Cell, earlier: Mapping[str, Stage]) -> Variables:
    """The variables of a finished model, read from its checkpoint."""
    task = task_of(lab, cell, earlier)
    tree, _ = checkpoint.load(task.folder / "model", task.like)
    return tree if cell.kind == "repair" else tree.variables


def turned(lab: Lab, variables: Variables, trigger: Trigger, label: int) -> float:
    """The share of the test images of other classes that a stamped trigger makes the model take for `label`."""
    images, labels = lab.dataset.test
    rows = np.flatnonzero(np.asarray(labels) != label)
    hits = 0
    for mine in np.split(rows, range(BATCH, len(rows), BATCH)):
        hits += int((predict(lab.model, variables, stamped(trigger, images[mine])) == label).sum())
    return hits / len(rows)


def stamped(trigger: Trigger, images: Any) -> jax.Array:
    """uint8 images [B, H, W, C] with an inverted trigger, rounded to levels as a file would hold them."""
    return as_levels(stamp(trigger, as_float(jnp.asarray(images)))).astype(jnp.uint8)
