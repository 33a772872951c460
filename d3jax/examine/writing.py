"""The files of an examination: its page, its tables and its conclusions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..core.paths import user_path
from ..core.records import Row as TableRow
from ..report.examination import (
    Figure,
    Part,
    Row,
    examination_html,
    save_class_figure,
    save_images,
    save_score_figure,
)
from ..results.tables import write_csv
from ..runtime.files import write_text
from .checks import Check, Conclusion
from .conclusions import suspected
from .given import Given

EXTREMES = 10
"""The number of samples or inputs with the highest scores that the page shows."""


def write_examination(
    out: str | Path,
    title: str,
    given: Given,
    checks: Sequence[Check],
    conclusions: Sequence[Conclusion],
) -> Path:
    """Write examination.html, examination.json, and samples.csv and inputs.csv of what was given.

    Returns the path of the page. Its figures stay in the folder `figures`.
    """
    folder, parts = user_path(out, "--out"), []
    for one in conclusions:
        own = [check for check in checks if check.subject == one.subject]
        rows = [
            Row(each.method, each.level, each.finding, each.certainty, each.limits, each.seconds)
            for each in own
        ]
        figures = list(_figures(folder / "figures", given, own))
        parts.append(Part(one.subject, one.level, one.text, one.advice, rows, figures))
        table = _table(given, own)
        if table:
            write_csv(folder / f"{one.subject}.csv", table, tuple(table[0]))
    told = ("subject", "method", "level", "finding", "certainty", "limits", "seconds")
    kept = {
        "facts": dict(given.facts),
        "conclusions": [one._asdict() for one in conclusions],
        "checks": [{name: getattr(check, name) for name in told} for check in checks],
    }
    text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "examination.json", text)
    write_text(folder / "examination.html", examination_html(title, given.facts, parts))
    return folder / "examination.html"


def _figures(folder: Path, given: Given, checks: Sequence[Check]) -> Iterator[Figure]:
    """Draw the figures of the checks of one subject."""
    for number, check in enumerate(checks):
        stem = f"{check.subject}{number + 1}"
        if check.class_scores is not None:
            yield save_class_figure(
                folder / f"{stem}-classes.png",
                check.method,
                check.score,
                check.class_scores,
                check.target,
                given.info.classes,
            )
        if check.pictures:
            caption = (
                f"{check.method}: the smallest trigger that it found. It is a reconstruction, and "
                "not the attacker's pattern."
            )
            yield save_images(folder / f"{stem}-trigger.png", check.pictures, caption)
        if check.scores is not None and check.flagged is not None:
            yield save_score_figure(
                folder / f"{stem}-scores.png", check.method, check.scores, check.flagged
            )
            caption = f"{check.method}: those with the highest and with the lowest scores."
            rows = _extremes(_images(given, check), check.scores)
            yield save_images(folder / f"{stem}-images.png", rows, caption)


def _images(given: Given, check: Check) -> np.ndarray:
    """Return the samples or inputs that a check scores, uint8 [N, H, W, C]."""
    if check.subject == "samples":
        assert given.suspects is not None
        return np.asarray(given.suspects.images)
    assert given.inputs is not None
    return given.inputs


def _extremes(images: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return the images with the highest and with the lowest scores [N]; NaN is no score."""
    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.argsort(-scores[known], kind="stable")]
    return {
        "most suspicious": images[order[:EXTREMES]],
        "least suspicious": images[order[::-1][:EXTREMES]],
    }


def _table(given: Given, checks: Sequence[Check]) -> list[TableRow]:
    """Return the table of samples or inputs: which are suspected, and their scores by each method.

    It is empty for checks of the model, and where none of the checks ran.
    """
    scored = [check for check in checks if check.scores is not None]
    if not scored:
        return []
    flagged = suspected(checks)
    rows: list[TableRow] = []
    for i in range(len(flagged)):
        row: TableRow = {"row": i}
        if scored[0].subject == "samples":
            assert given.suspects is not None
            row["label"] = given.info.classes[int(given.suspects.labels[i])]
        else:
            row["file"] = given.files[i]
        row["suspected"] = bool(flagged[i])
        for check in scored:
            assert check.scores is not None
            score = float(check.scores[i])
            row[check.method.split(" (")[0]] = score if np.isfinite(score) else None
        rows.append(row)
    return rows
