"""What the report shows of a study's models: test images and what is said of them, inverted triggers, features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.features import penultimate, project, separation
from ...core.images import as_float, as_levels
from ...core.types import Attack
from ...data.reserved import draw_stratified
from ...inversion import detect, stamp
from ...metrics.attack_success import predict
from ...metrics.image_similarity import likeness
from ...report.sections.model_detection import Features, Inverted
from ...report.sections.samples import Samples
from ..attack_run import Cell
from ..context import Lab
from ..executor import Result, Stage
from .model_detection import chosen, stamped, variables_of

SHOWN, COMPARED = 8, 500
"""Test images in the report's grid, and behind its PSNR and SSIM."""


class Shown(NamedTuple):
    """The report's images of one case: `clean` and `triggered` uint8, true `labels`, the attacker's `targets`."""

    clean: jax.Array
    triggered: jax.Array
    labels: jax.Array
    targets: jax.Array


class Said(NamedTuple):
    """What one model says: the classes it sees in the clean and in the triggered images, and its features, if wanted."""

    predictions: tuple[np.ndarray, np.ndarray]
    features: Features | None


def say(lab: Lab, cell: Cell, earlier: Mapping[str, Stage], variables: Any) -> Said:
    """What the model of a cell says."""
    pictures = _shown(lab, cell, earlier, SHOWN)
    predictions = tuple(
        np.asarray(predict(lab.model, variables, images))
        for images in (pictures.clean, pictures.triggered)
    )
    attack, trigger = cell.case.attack, earlier[Cell(cell.case).name].tree.trigger
    triggered = lambda images: as_levels(attack.stamp(trigger, as_float(images))).astype(jnp.uint8)
    return Said(
        predictions,
        _features(lab, variables, triggered, attack.relabel) if lab.config.features else None,
    )


def samples_of(
    lab: Lab,
    cells: Sequence[Cell],
    results: Mapping[str, Result],
    earlier: Mapping[str, Stage],
    said: Mapping[str, Said],
    features: Mapping[str, Mapping[str, Features]],
) -> list[Samples]:
    """For every attack under the first seed: a few images, what every model says of them, and what was found out of the model.
    `features` are those of `inverted_features`."""
    samples = []
    for first in cells:
        if (
            first.kind == "model"
            and first.case.seed == lab.config.seeds[0]
            and first.name in earlier
        ):
            mine = [cell for cell in cells if cell.case is first.case and cell.name in said]
            inversions = [
                cell for cell in cells if cell.case is first.case and cell.kind == "inversion"
            ]
            many = _shown(lab, first, earlier, COMPARED)
            pictures = Shown(*(np.asarray(part[:SHOWN]) for part in many))
            samples.append(Samples(
                first.case.label, first.case.seed, *pictures[:3], lab.dataset.info.classes,
                predictions={cell.label: said[cell.name].predictions for cell in mine},
                per_class={cell.label: results[cell.name].counts.per_class() for cell in mine},
                targets=pictures.targets,
                likeness=likeness(as_float(many.clean), as_float(many.triggered)),
                inverted=[
                    _inverted(lab, cell, results[cell.name].tree, pictures)
                    for cell in inversions if isinstance(results.get(cell.name), Stage)
                ],
                features=features.get(first.case.label)
                or {cell.label: said[cell.name].features for cell in mine if said[cell.name].features},
                inverted_twins=first.case.label in features,
            ))  # fmt: skip
    return samples


def targets_of(attack: Attack, num_classes: int) -> set[int]:
    """The classes that an attack turns others into."""
    labels = np.arange(num_classes)
    wanted = np.asarray(attack.relabel(jnp.asarray(labels)))
    return set(wanted[wanted != labels].tolist())


def _shown(lab: Lab, cell: Cell, earlier: Mapping[str, Stage], count: int) -> Shown:
    """The first `count` test images of which the attacker wants another class, clean and triggered."""
    attack, trigger, (images, labels) = (
        cell.case.attack,
        earlier[Cell(cell.case).name].tree.trigger,
        lab.dataset.test,
    )
    wanted = attack.relabel(labels)
    candidates = np.flatnonzero(np.asarray(wanted != labels))
    rows = (candidates if candidates.size else np.arange(len(labels)))[:count]
    triggered = as_levels(attack.stamp(trigger, as_float(images[rows]))).astype(jnp.uint8)
    return Shown(images[rows], triggered, labels[rows], wanted[rows])


def _inverted(lab: Lab, cell: Cell, tree: Any, pictures: Shown) -> Inverted:
    """A detection, with the smallest of its triggers on the report's images."""
    found = detect(tree.norms)
    grey = np.full((1, *pictures.clean.shape[1:]), 0.5, np.float32)
    on = lambda row, images: np.asarray(
        as_levels(stamp(jax.tree.map(lambda part: part[row], tree.trigger), images)), np.uint8
    )
    smallest = int(np.argmin(tree.norms))
    targets = (
        targets_of(cell.case.attack, lab.dataset.info.num_classes) if cell.case.attacked else set()
    )
    return Inverted(
        cell.choice.label, cell.case.seed, tree.labels, tree.norms, found.flagged, found.index, tree.success,
        median=found.median, spread=found.spread, targets=targets,
        triggers=np.concatenate([on(row, grey) for row in range(len(tree.labels))]),
        smallest=on(smallest, as_float(jnp.asarray(pictures.clean))),
    )  # fmt: skip


def inverted_features(
    lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result], earlier: Mapping[str, Stage]
) -> dict[str, dict[str, Features]]:
    """For a model from elsewhere of which no trigger is known: the features of every model of images stamped with the trigger that the
    first detection found, under the first seed, by attack and defence. Every process computes them: all read the checkpoints."""
    wanted = [
        cell for cell in cells if cell.case.seed == lab.config.seeds[0] and not cell.case.attacked
    ]
    if not (lab.suspect and lab.config.features):
        return {}
    found: dict[str, dict[str, Features]] = {}
    for first in wanted:
        if (
            first.kind != "inversion"
            or first.case.label in found
            or not isinstance(results.get(first.name), Stage)
        ):
            continue
        inverted = results[first.name].tree
        at = chosen(inverted.norms, detect(inverted.norms).flagged)
        trigger, label = (
            jax.tree.map(lambda part, at=at: part[at], inverted.trigger),
            int(inverted.labels[at]),
        )
        aim = lambda labels, label=label: jnp.full_like(labels, label)
        found[first.case.label] = {
            cell.label: _features(
                lab, variables_of(lab, cell, earlier), partial(stamped, trigger), aim
            )
            for cell in wanted
            if cell.case is first.case
            and cell.kind in ("model", "repair")
            and isinstance(results.get(cell.name), Stage)
        }
    return found


def _features(
    lab: Lab, variables: Any, stamp: Callable[[Any], jax.Array], relabel: Callable[[Any], jax.Array]
) -> Features:
    """Features of some test images of every class and of their stamped twins, of which the attacker wants another class."""
    every = np.asarray(lab.dataset.test.labels)
    count = min(lab.config.features, len(every))
    rows = draw_stratified(every, count, lab.dataset.info.num_classes, np.random.default_rng(0))
    images, labels = lab.dataset.test.images[rows], lab.dataset.test.labels[rows]
    twins = np.flatnonzero(np.asarray(relabel(jnp.asarray(labels)) != labels))
    clean = penultimate(lab.model, variables, images)
    triggered = clean[:0]
    if len(twins):
        triggered = penultimate(lab.model, variables, stamp(images[twins]))
    labels, both = np.asarray(labels), np.concatenate([clean, triggered])
    points = {method: project(both, method) for method in ("pca", "tsne")}
    return Features(points, labels, separation(clean, triggered, labels, twins))
