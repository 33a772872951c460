"""Model detections: a line for each, and of a first seed the triggers that were inverted."""

from collections.abc import Mapping

import numpy as np

from ...results.artifacts import Finished
from ...results.summary import detections
from ..plots.triggers import MOST, save_norms, save_smallest
from ..rendering import Markup, render
from ..view import Study, View

TABLES = ("detections", "samples", "inputs")
NUMBERS = ("norm", "index", "success", "flagged")


def show_table(study: Study) -> Markup:
    """Return a line for every detection of the study."""
    rows = [row for name in TABLES for row in study.tables.get(name, ())]
    found = detections(rows)
    return render("detections.html.j2", lines=[one["text"] for one in found])


def show(view: View) -> Markup:
    """Return for every detection the norms with their triggers, and the smallest on images."""
    samples = [one.arrays for one in view.finished("report_samples") if "clean" in one.arrays]
    detected = [
        one for one in view.finished("model_detection") if {"triggers", "norm"} <= set(one.arrays)
    ]
    shown = [_show(view, one, samples[0]) for one in detected if samples and one.entry.label]
    return Markup("").join(shown)


def _show(view: View, one: Finished, images: Mapping[str, np.ndarray]) -> Markup:
    name, arrays, classes = one.entry.label, one.arrays, view.study.run.manifest.classes
    title, targets = f"{name}, seed {one.entry.seed}", view.attack.targets * view.attack.attacked
    median, spread = one.record.facts["median"], one.record.facts["spread"]
    threshold = one.record.facts["threshold"]
    levels = {"median": median, "threshold": median - threshold * spread}
    stamped = {"attacker's": images["triggered"]} if targets else {}
    numbers = zip(classes, *(arrays[key].tolist() for key in NUMBERS), strict=True)
    return render(
        "model_detection.html.j2",
        title=title,
        detection=name,
        norms=save_norms(view.path(name), title, arrays, levels, classes, targets),
        smallest=save_smallest(
            view.path(f"{name}-triggers"),
            images["clean"],
            stamped | {"inverted": arrays["smallest"]},
        ),
        triggers=[
            {"name": name, **dict(zip(NUMBERS, rest, strict=True))} for name, *rest in numbers
        ],
        most=MOST,
        targets=[classes[label] for label in sorted(targets)],
    )
