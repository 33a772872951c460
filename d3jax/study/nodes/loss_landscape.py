"""Losses on the lines from the backdoored model to its repaired ones, and in their plane."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.loss_landscape import (
    Losses,
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
from ...results.artifacts import Row
from ..context import reserved_split
from .base import AnalysisNode, Findings, Inputs, Node
from .victim import Victim

MEASURED = 1000
"""Test images at every point of a line; the plane and the expansion take half of them."""
FEW = 150
"""Triggered images for the Hessian's eigenvalues: Lanczos' method takes a hundred products."""
FROM, TO = -0.5, 4.0
SIDE = 13
"""Points along a side of the plane's grid."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LossLandscapeNode(AnalysisNode):
    """The lines from the victim to all its repaired models, and the plane of the first two."""

    kind, title = "loss_landscape", "loss landscape"
    victim: Node
    repairs: tuple[Node, ...]

    what = "loss_landscape"

    @property
    def needs(self) -> dict[str, Node]:
        """The victim and its repairs, by their labels."""
        return {"victim": self.victim} | {f"to {node.label}": node for node in self.repairs}

    @property
    def optional(self) -> tuple[str, ...]:
        """Every repair: those that failed have no line."""
        return tuple(f"to {node.label}" for node in self.repairs)

    @property
    def recipe(self) -> dict[str, Any]:
        """How many points and images."""
        return {"points": self.context.config.paths, "measured": MEASURED, "side": SIDE}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the rows of paths.csv and changes.csv, and the arrays of the page."""
        victim = inputs.victim.tree
        artifacts = {node.label: getattr(inputs, f"to {node.label}") for node in self.repairs}
        models = {label: one.tree for label, one in artifacts.items() if one}
        if not models:
            return Findings()
        test = Split(*(jnp.asarray(part[:MEASURED]) for part in self.context.dataset.test))
        half = Split(*(part[: MEASURED // 2] for part in test))
        lines = {label: self._line(victim, model, test) for label, model in models.items()}
        arrays = {
            f"{label}/{kind}/{name}": values
            for label, losses in lines.items()
            for kind, found in losses.items()
            for name, values in found._asdict().items()
        }
        arrays |= {f"{label}/ts": self._points for label in models}
        arrays |= self._expansions(victim, models, half)
        plane = self._plane(victim, models, half)
        moved, tensors = self._changes(victim, models)
        tables = {"paths": self._path_rows(lines), "changes": self._change_rows(moved, tensors)}
        facts = {"defenses": list(models), "tensors": tensors}
        facts |= {"plane": ["backdoored", *list(models)[:2]]} if plane else {}
        return Findings(tables, arrays | plane | moved, facts)

    @property
    def _points(self) -> np.ndarray:
        points = np.linspace(FROM, TO, self.context.config.paths)
        return np.unique(np.round(np.append(points, [0.0, 1.0]), 4))

    def _line(self, victim: Victim, model: Variables, test: Split) -> dict[str, Losses]:
        """Return the losses on one line, by the treatment of BatchNorm's statistics."""
        reserved = reserved_split(self.context, self.run.seed)
        kinds = ("interpolated", "estimated", "first")
        if not victim.variables.batch_stats:
            kinds = ("interpolated", "first")
        given = (self.context.model, self.run.attack, victim.trigger, victim.variables, model)
        points = self._points.tolist()
        return {kind: path_losses(*given, points, test, kind, reserved) for kind in kinds}

    def _expansions(self, victim: Victim, models: Mapping[str, Variables], half: Split) -> Arrays:
        """Return the backdoor loss to second order on every line, and its Hessian's eigenvalues."""
        attack, params = self.run.attack, victim.variables.params
        rows = np.flatnonzero(np.asarray(attack.relabel(half.labels) != half.labels))
        images, labels = as_float(half.images[rows]), half.labels[rows]
        loss = make_backdoor_loss(self.context.model, attack, victim.variables.batch_stats)
        found = {}
        for label, model in models.items():
            direction = jax.tree.map(jnp.subtract, model.params, params)
            expansion = taylor(loss, params, direction, victim.trigger, images, labels)
            found[f"{label}/taylor"] = np.array(tuple(expansion))
        few = (victim.trigger, images[:FEW], labels[:FEW])
        return found | {"eigenvalues": top_eigenvalues(loss, params, *few, tolerance=0.05)}

    def _plane(self, victim: Victim, models: Mapping[str, Variables], images: Split) -> Arrays:
        """Return the losses in the plane; {} for fewer than two repairs, or three on a line."""
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
        given = (self.context.model, self.run.attack, victim.trigger, three)
        found = plane_losses(*given, xs.tolist(), ys.tolist(), images)
        plane = {"places": places, "xs": xs, "ys": ys}
        plane |= {"clean": found.clean_loss, "backdoor": found.backdoor_loss}
        return {f"plane/{name}": values for name, values in plane.items()}

    def _changes(self, victim: Victim, models: Mapping[str, Variables]) -> tuple[Arrays, list[str]]:
        """Return how every tensor changed on every line, and the tensors' names."""
        before = jax.device_get(victim.variables.params)
        after = [jax.device_get(variables.params) for variables in models.values()]
        found = dict(zip(models, changes(before, after), strict=True))
        tensors = list(next(iter(found.values())))
        arrays = {
            "edges": np.stack([next(iter(found.values()))[name]["edges"] for name in tensors])
        }
        for label, moved in found.items():
            for part in ("counts", "norm", "relative"):
                arrays[f"{label}/{part}"] = np.stack([moved[name][part] for name in tensors])
        return arrays, tensors

    def _path_rows(self, lines: Mapping[str, Mapping[str, Losses]]) -> list[Row]:
        return [
            {"attack": self.run.label, "seed": self.run.seed, "defense": label}
            | {"statistics": kind, "t": float(t)}
            | {name: float(values[i]) for name, values in found._asdict().items()}
            for label, losses in lines.items()
            for kind, found in losses.items()
            for i, t in enumerate(self._points)
        ]

    def _change_rows(self, moved: Arrays, tensors: list[str]) -> list[Row]:
        labels = [name.removesuffix("/norm") for name in moved if name.endswith("/norm")]
        return [
            {"attack": self.run.label, "seed": self.run.seed, "defense": label, "tensor": tensor}
            | {part: float(moved[f"{label}/{part}"][i]) for part in ("norm", "relative")}
            for label in labels
            for i, tensor in enumerate(tensors)
        ]
