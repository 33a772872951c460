"""The report page's sections on detections: a line for each, and model detectors' evidence."""

from collections.abc import Mapping

import numpy as np

from ...results.artifacts import Finished
from ...results.summary import detections
from ..plots.scores import MOST as MOST_SCORES
from ..plots.scores import save_class_scores
from ..plots.triggers import MOST, save_norms, save_smallest
from ..rendering import Markup, render
from ..view import Study, View

TABLES = ("detections", "samples", "inputs")
NUMBERS = ("norm", "index", "success", "flagged")


def show_table(study: Study) -> Markup:
    """Return the HTML list with one line of text for each detection of the study."""
    rows = [row for name in TABLES for row in study.tables.get(name, ())]
    found = detections(rows)
    return render("detections.html.j2", lines=[one["text"] for one in found])


def show(view: View) -> Markup:
    """Return the HTML figures of the evidence of each model detector, for the first seed.

    A detector that inverts triggers shows their norms, and the smallest trigger on images. Other
    detectors show the score of each class.
    """
    samples = [one.arrays for one in view.finished("report_samples") if "clean" in one.arrays]
    shown = []
    for one in view.finished("model_detection"):
        if {"triggers", "norm"} <= set(one.arrays):
            shown += [_show_triggers(view, one, images) for images in samples[:1]]
        elif one.arrays:
            shown.append(_show_scores(view, one))
    return Markup("").join(shown)


def _show_scores(view: View, one: Finished) -> Markup:
    """Return the HTML figure of the scores that one model detector gives the classes."""
    name, arrays, classes = one.entry.label, one.arrays, view.study.run.manifest.classes
    targets = view.attack.targets * view.attack.attacked
    title = f"{name}, seed {one.entry.seed}"
    return render(
        "class_scores.html.j2",
        title=title,
        path=save_class_scores(view.path(name), title, arrays, classes, targets),
        facts=one.record.facts,
        flagged=[classes[label] for label in np.flatnonzero(arrays["flagged"])],
        highest=classes[int(arrays["scores"].argmax())],
        targets=[classes[label] for label in sorted(targets)],
        most=MOST_SCORES,
        count=len(classes),
    )


def _show_triggers(view: View, one: Finished, images: Mapping[str, np.ndarray]) -> Markup:
    """Return the HTML figures of a detection's inverted triggers: norms, and one on images."""
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
