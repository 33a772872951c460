"""Training-time defences in a study: the set they train on, what is measured of them, and how well they found the poison.

Which images are poisoned is known here, for logs and reports, and nowhere that a weight comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ...core.random import stream
from ...core.types import Split, Variables
from ...metrics.sample_scores import auroc, precision_recall, scores_of, ties_of
from ...report.sections.training_time import Filter
from ...training.loop import LogRecord
from ...training.poisoned_set import poisoned_split
from ...training.victim import poisoned_rows
from ..attack_run import Case, Cell
from ..context import Lab
from ..executor import Result, Stage

WATCHED = 1000
"""Test images, clean and poisoned training images, of each at most so many, that are measured once an epoch."""

SHARES = (0.01, 0.05, 0.1)
"""Of the images with the lowest scores, for which a filter's precision is given."""


class TrainedModel(NamedTuple):
    """What a training-time defence leaves: the model, and what it found out about the training images."""

    variables: Variables
    found: dict[str, np.ndarray]


def training_key(case: Case) -> jax.Array:
    """What all that is random in the training-time defences of a seed follows from."""
    return stream(jax.random.key(case.seed), "training")


def untrusted_data(lab: Lab, case: Case, prepared: Stage | None = None) -> tuple[Split, np.ndarray]:
    """The poisoned training set of a case, and which rows are the attacker's."""
    return poisoned_split(
        jax.random.key(case.attack_seed), case.attack, lab.dataset.train, prepared and prepared.tree
    )


def training_watch(
    lab: Lab, case: Case, victim: Callable[[], Any], data: Callable[[], tuple[Split, np.ndarray]]
) -> Callable[[Any], LogRecord]:
    """What is measured along the way, for plots: ACC and ASR on some test images; loss, accuracy and entropy of some clean and of some
    poisoned training images under the labels they were given."""
    test = _some(lab.dataset.test, np.arange(len(lab.dataset.test.labels)))
    kept: list[tuple[str, Split]] = []

    def parts() -> list[tuple[str, Split]]:
        if not kept:
            split, flags = data()
            for name, rows in (
                ("clean", np.flatnonzero(~flags)),
                ("poisoned", np.flatnonzero(flags)),
            ):
                if len(rows):
                    kept.append((name, _some(split, rows)))
        return kept

    def watch(state: Any) -> LogRecord:
        counts = case.evaluate(state.variables, victim().trigger, test)
        line = {"watch_acc": counts.acc} | (
            {"watch_asr": counts.asr} if counts.triggered.sum() else {}
        )
        for name, split in parts():
            scores = scores_of(
                lab.model, state.variables, split, ("entropy", "cross_entropy", "right")
            )
            line |= {
                f"{name}_ce": float(scores["cross_entropy"].mean()),
                f"{name}_entropy": float(scores["entropy"].mean()),
            }
            line[f"{name}_right"] = float(scores["right"].mean())
        return line

    return watch


def _some(split: Split, rows: np.ndarray) -> Split:
    """At most `WATCHED` of these rows, from all over: a set may be sorted by class."""
    rows = rows[np.linspace(0, len(rows) - 1, min(WATCHED, len(rows))).astype(int)]
    return Split(*(np.asarray(part)[rows] for part in split))


def flags_of(lab: Lab, case: Case) -> np.ndarray:
    """Which training images [N] of a case are poisoned."""
    return np.asarray(
        poisoned_rows(jax.random.key(case.attack_seed), case.attack, lab.dataset.train.labels)
    )


def filters_of(lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result]) -> list[Filter]:
    """What every finished training-time defence found out about its images."""
    filters = []
    for cell in cells:
        result = results.get(cell.name)
        if cell.kind == "training" and isinstance(result, Stage):
            beginning = cell.needs[-1].name.rpartition("/")[2]
            flags, found = flags_of(lab, cell.case), result.tree
            scored = [
                name
                for name, values in found.items()
                if values.dtype != np.bool_ and np.any(values)
            ]
            curves = {
                name: precision_recall(found[name], flags, ties_of(name, found)) for name in scored
            }
            filters.append(
                Filter(cell.case.label, cell.label, cell.case.seed, flags, found, curves, beginning)
            )
    return filters


def filter_rows(filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """The lines of filters.csv: for every training-time defence and score, how well low scores find the poison."""
    rows = []
    for one in filters:
        for name, (precision, recall) in one.curves.items():
            rate = auroc(one.found[name], one.flags)
            line = {"attack": one.attack, "defense": one.defense, "seed": one.seed, "score": name}
            line["auroc"] = None if np.isnan(rate) else rate
            for share in SHARES:
                at = max(1, int(share * len(one.flags))) - 1
                found = one.flags.any()  # in a clean set there is nothing to find
                line[f"precision_{share:g}"] = float(precision[at]) if found else None
                line[f"recall_{share:g}"] = float(recall[at]) if found else None
            rows.append(line)
    return rows


def filter_columns(flags: np.ndarray, found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What results.csv says of a defence's choice of images: how many suspects, which share of them is poisoned, and which share of
    the images that kept their labels."""
    suspects, labelled = found["suspects"], found["labelled"]
    share = lambda mask: float(flags[mask].mean()) if mask.any() else None
    return {
        "suspects": int(suspects.sum()),
        "suspects_poisoned": share(suspects),
        "labelled_poisoned": share(labelled),
    }
