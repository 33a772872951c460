"""Lines and planes between a study's models, for the report: what is computed of the first seed where `paths` asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.loss_landscape import (  # fmt: skip
    changes,
    make_backdoor_loss,
    path_losses,
    plane_losses,
    plane_of,
    taylor,
    top_eigenvalues,
)
from ...core.images import as_float
from ...core.types import Split, Variables
from ...report.sections.loss_landscape import Lines, LineTo, PlaneOf
from ..attack_run import Cell
from ..context import Lab, reserved_split
from ..executor import Stage

MEASURED = 1000
"""Test images at every point of a line; the plane and the expansion take half of them."""
FEW = 150
"""Triggered images behind the Hessian's eigenvalues: Lanczos' method takes a hundred products and more."""
FROM, TO = -0.5, 4.0
SIDE = 13
"""Points along a side of the plane's grid."""


def lines_of(
    lab: Lab, cells: Sequence[Cell], earlier: Mapping[str, Stage], repaired: Mapping[str, Variables]
) -> list[Lines]:
    """For every attack with a trigger under the first seed: the lines to all its repaired models, and the plane through the first two."""
    found = []
    for first in cells:
        if first.kind != "model" or first.name not in earlier or not first.case.attacked:
            continue
        mine = [
            cell
            for cell in cells
            if cell.case is first.case and cell.kind == "repair" and cell.name in repaired
        ]
        if mine:
            found.append(
                _of_attack(
                    lab,
                    first,
                    earlier[first.name].tree,
                    {cell.label: repaired[cell.name] for cell in mine},
                )
            )
    return found


def _of_attack(lab: Lab, cell: Cell, victim: Any, models: Mapping[str, Variables]) -> Lines:
    attack, model, trigger = cell.case.attack, lab.model, victim.trigger
    test = Split(*(jnp.asarray(part[:MEASURED]) for part in lab.dataset.test))
    half = Split(*(part[: MEASURED // 2] for part in test))
    reserved = reserved_split(lab, cell.case.seed)
    rows = np.flatnonzero(np.asarray(attack.relabel(half.labels) != half.labels))
    images, labels = as_float(half.images[rows]), half.labels[rows]
    loss = make_backdoor_loss(model, attack, victim.variables.batch_stats)
    data, few = (trigger, images, labels), (trigger, images[:FEW], labels[:FEW])
    ts = np.unique(np.round(np.append(np.linspace(FROM, TO, lab.config.paths), [0.0, 1.0]), 4))
    paths = []
    moved = changes(victim.variables.params, [variables.params for variables in models.values()])
    for (label, variables), changed in zip(models.items(), moved, strict=True):
        variables = jax.tree.map(jnp.asarray, variables)
        losses = {
            kind: path_losses(
                model,
                attack,
                trigger,
                victim.variables,
                variables,
                ts.tolist(),
                test,
                kind,
                reserved,
            )
            for kind in (
                ("interpolated", "estimated", "first")
                if victim.variables.batch_stats
                else ("interpolated", "first")
            )
        }
        direction = jax.tree.map(jnp.subtract, variables.params, victim.variables.params)
        expansion = tuple(taylor(loss, victim.variables.params, direction, *data))
        paths.append(LineTo(label, ts, losses, expansion, changed))
    plane = _plane(lab, attack, victim, models, half)
    return Lines(
        cell.case.label,
        paths,
        plane,
        top_eigenvalues(loss, victim.variables.params, *few, tolerance=0.05),
    )


def path_rows(found: Sequence[Lines], seed: int) -> list[dict[str, Any]]:
    """The lines of paths.csv: for every attack, defence, treatment of BatchNorm's `statistics` and point `t`, the `Losses`."""
    return [
        {
            "attack": lines.attack,
            "seed": seed,
            "defense": one.defense,
            "statistics": kind,
            "t": float(t),
        }
        | {name: float(values[i]) for name, values in losses._asdict().items()}
        for lines in found
        for one in lines.paths
        for kind, losses in one.losses.items()
        for i, t in enumerate(one.ts)
    ]


def change_rows(found: Sequence[Lines], seed: int) -> list[dict[str, Any]]:
    """The lines of changes.csv: for every attack, defence and tensor how far it moved."""
    return [
        {"attack": lines.attack, "seed": seed, "defense": one.defense, "tensor": name}
        | {key: moved[key] for key in ("norm", "relative")}
        for lines in found
        for one in lines.paths
        for name, moved in one.changes.items()
    ]


def _plane(
    lab: Lab, attack: Any, victim: Any, models: Mapping[str, Variables], images: Split
) -> PlaneOf | None:
    """The plane through the backdoored model and the first two repaired ones; None where they are fewer, or on a line."""
    if len(models) < 2:
        return None
    names = list(models)[:2]
    three = [victim.variables, *(jax.tree.map(jnp.asarray, models[name]) for name in names)]
    try:
        places = plane_of(*(variables.params for variables in three)).places
    except ValueError:
        return None
    low, high = places.min(0), places.max(0)
    margin = 0.3 * (high - low)
    xs, ys = (np.linspace(low[i] - margin[i], high[i] + margin[i], SIDE) for i in (0, 1))
    found = plane_losses(lab.model, attack, victim.trigger, three, xs.tolist(), ys.tolist(), images)
    return PlaneOf(["backdoored", *names], places, xs, ys, found.clean_loss, found.backdoor_loss)
