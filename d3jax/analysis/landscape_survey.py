"""A survey of losses on the lines from a backdoored model to its repaired ones, and in a plane."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.images import as_float
from ..core.types import Attack, Model, Split, Variables
from .curvature import make_backdoor_loss, taylor, top_eigenvalues
from .loss_landscape import Losses, path_losses, plane_losses, plane_of
from .weight_changes import changes

MEASURED = 1000
"""Number of test images at a point of a line; the plane and the expansion take half as many."""
FEW = 150
"""Triggered images for the Hessian's eigenvalues: Lanczos' method takes a hundred products."""
FROM, TO = -0.5, 4.0
SIDE = 13
"""Number of points along a side of the plane's grid."""

Arrays = dict[str, Any]
Models = Mapping[str, Variables]


class Survey(NamedTuple):
    """The losses between a victim and repaired models, and the changes of all weight tensors.

    The losses are those on all lines and in the plane. `lines` has the losses at `ts` [T], by model
    and by treatment of BatchNorm's statistics. `arrays` has all results by the names of
    `results.node_arrays.LandscapeArrays`. `tensors` has the names of the parameters.
    """

    ts: np.ndarray
    lines: dict[str, dict[str, Losses]]
    arrays: Arrays
    tensors: list[str]

    def path_rows(self) -> Iterator[dict[str, Any]]:
        """Yield a table row of losses per repaired model, BatchNorm treatment and line point."""
        for model, kinds in self.lines.items():
            for kind, losses in kinds.items():
                for i, t in enumerate(self.ts):
                    row = {"defense": model, "statistics": kind, "t": float(t)}
                    yield row | {name: float(part[i]) for name, part in losses._asdict().items()}

    def change_rows(self) -> Iterator[dict[str, Any]]:
        """Yield a table row per repaired model and weight tensor: how far the tensor moved."""
        for model in self.lines:
            for i, tensor in enumerate(self.tensors):
                moved = {part: self.arrays[f"{model}/{part}"][i] for part in ("norm", "relative")}
                moved = {part: float(value) for part, value in moved.items()}
                yield {"defense": model, "tensor": tensor, **moved}


def survey(
    model: Model,
    attack: Attack,
    victim: Any,
    models: Models,
    test: Split,
    reserved: Split,
    points: int,
) -> Survey:
    """Compute a `Survey` of clean and backdoor losses between a victim and its repaired models.

    `victim` has variables and a trigger, and `models` maps names to variables. `reserved` images
    estimate BatchNorm's statistics. `points` is the number of points of a line besides 0 and 1.
    """
    test = Split(*(jnp.asarray(part[:MEASURED]) for part in test))
    half = Split(*(part[: MEASURED // 2] for part in test))
    ts = np.unique(np.round(np.append(np.linspace(FROM, TO, points), [0.0, 1.0]), 4))
    kinds = ("interpolated", "estimated", "first")
    kinds = kinds if victim.variables.batch_stats else ("interpolated", "first")
    start = (model, attack, victim.trigger, victim.variables)
    lines = {
        name: {kind: path_losses(*start, end, ts.tolist(), test, kind, reserved) for kind in kinds}
        for name, end in models.items()
    }
    arrays: Arrays = {f"{name}/ts": ts for name in models}
    for name, losses in lines.items():
        for kind, found in losses.items():
            arrays |= {f"{name}/{kind}/{part}": values for part, values in found._asdict().items()}
    moved, tensors = _changes(victim.variables, models)
    arrays |= _second_order(model, attack, victim, models, half) | moved
    return Survey(ts, lines, arrays | _plane(model, attack, victim, models, half), tensors)


def _second_order(
    model: Model, attack: Attack, victim: Any, models: Models, images: Split
) -> Arrays:
    """Return Taylor terms of the backdoor loss towards repaired models, and Hessian eigenvalues."""
    params = victim.variables.params
    rows = np.flatnonzero(np.asarray(attack.relabel(images.labels) != images.labels))
    pixels, labels = as_float(images.images[rows]), images.labels[rows]
    loss = make_backdoor_loss(model, attack, victim.variables.batch_stats)
    found = {}
    for name, end in models.items():
        direction = jax.tree.map(jnp.subtract, end.params, params)
        expansion = taylor(loss, params, direction, victim.trigger, pixels, labels)
        found[f"{name}/taylor"] = np.array(tuple(expansion))
    few = (victim.trigger, pixels[:FEW], labels[:FEW])
    return found | {"eigenvalues": top_eigenvalues(loss, params, *few, tolerance=0.05)}


def _plane(model: Model, attack: Attack, victim: Any, models: Models, images: Split) -> Arrays:
    """Return arrays of losses in the plane through a victim and the first two repaired models.

    Returns {} for fewer than two models, or where the three lie on a line.
    """
    if len(models) < 2:
        return {}
    three = [victim.variables, *list(models.values())[:2]]
    try:
        places = plane_of(*(variables.params for variables in three)).places
    except ValueError:
        return {}
    low, high = places.min(0), places.max(0)
    margin = 0.3 * (high - low)
    xs, ys = (np.linspace(low[i] - margin[i], high[i] + margin[i], SIDE) for i in (0, 1))
    given = (model, attack, victim.trigger, three)
    found = plane_losses(*given, xs.tolist(), ys.tolist(), images)
    plane = {"places": places, "xs": xs, "ys": ys, "clean": found.clean_loss}
    plane |= {"backdoor": found.backdoor_loss}
    return {f"plane/{name}": values for name, values in plane.items()}


def _changes(before: Variables, models: Models) -> tuple[Arrays, list[str]]:
    """Return norms and histograms of each weight's change by each repair, and weight names."""
    after = [jax.device_get(variables.params) for variables in models.values()]
    found = dict(zip(models, changes(jax.device_get(before.params), after), strict=True))
    first = next(iter(found.values()))
    arrays: Arrays = {"edges": np.stack([moved["edges"] for moved in first.values()])}
    for name, moved in found.items():
        for part in ("counts", "norm", "relative"):
            arrays[f"{name}/{part}"] = np.stack([one[part] for one in moved.values()])
    return arrays, list(first)
