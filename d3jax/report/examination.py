"""The page of an examination: conclusions, what was looked at, and every check, without jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .plots.samples import drawable, save_rows
from .plots.scores import save_class_scores, save_detector_scores
from .rendering import render

TITLES = {
    "model": "The model",
    "samples": "The training samples",
    "inputs": "The inputs",
}
"""The title of each part of the page, by its subject."""


class Row(NamedTuple):
    """One check in a table of the page: what its method found, how sure that is, its limits."""

    method: str
    level: str
    finding: str
    certainty: str
    limits: str
    seconds: float


class Figure(NamedTuple):
    """A figure of the page: its PNG file, None if nothing could be drawn, and its caption."""

    path: Path | None
    caption: str


class Part(NamedTuple):
    """One subject on the page, with its conclusion, its checks and its figures.

    `level` is "found", "weak", "nothing" or "not run".
    """

    subject: str
    level: str
    text: str
    advice: str
    rows: Sequence[Row]
    figures: Sequence[Figure]


def examination_html(title: str, facts: Sequence[tuple[str, str]], parts: Sequence[Part]) -> str:
    """Return the page of an examination as HTML that needs no other file.

    `facts` are pairs (what, text) on what was looked at.
    """
    return render("examination.html.j2", title=title, facts=facts, parts=parts, titles=TITLES)


def save_class_figure(
    path: Path, method: str, score: str, scores: np.ndarray, target: int, classes: Sequence[str]
) -> Figure:
    """Draw the scores [K] that a check gives the classes; return the figure and its caption.

    `score` is a sentence on what the score is.
    """
    found = {"scores": scores, "flagged": np.arange(len(scores)) == target}
    figure = save_class_scores(path, method, found, classes, ())
    caption = (
        f"{method}: the score of each class, where a higher one is more suspicious. {score} A "
        "flagged class is coloured."
    )
    return Figure(figure, caption)


def save_score_figure(path: Path, method: str, scores: np.ndarray, flagged: np.ndarray) -> Figure:
    """Draw a histogram of the scores [N] of samples or inputs; return it and its caption."""
    known = np.isfinite(scores)
    arrays = {"scores": scores[known], "positive": flagged[known]}
    figure = save_detector_scores(path, {method: arrays}, "flagged")
    caption = f"{method}: the scores of those that are flagged, and of the others."
    return Figure(figure, caption)


def save_images(path: Path, rows: Mapping[str, np.ndarray], caption: str) -> Figure:
    """Draw rows of uint8 images [n, H, W, C] by name; return the figure and its caption."""
    shown = {name: drawable(images) for name, images in rows.items()}
    return Figure(save_rows(path, shown, label_share=0.2), caption)
