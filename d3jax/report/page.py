"""The report page of a study, report.html: a single file that needs no other file and no jax."""

import json
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..results.artifacts import RunFolder
from ..runtime.files import read_json, remove, write_text
from .rendering import Markup, drawn, render
from .sections import (  # fmt: skip
    classes,
    curves,
    detector_scores,
    evolution,
    external_model,
    features,
    inverted_triggers,
    loss_landscape,
    model_detection,
    outcomes,
    relearning,
    robustness,
    samples,
    training_time,
)
from .view import Study, Tables, study_of, views_of

OVERVIEW = (
    ("", outcomes.show_glance),
    ("external_model", external_model.show),
    ("", outcomes.show_table),
    ("", model_detection.show_table),
    ("", outcomes.show_glossary),
)
"""Sections on the whole study, as pairs (kind of node, function).

A section appears if the study has a node of this kind. The kind "" stands for all kinds.
"""
DETAILS = (
    ("evolution", evolution.show),
    ("training_time", training_time.show),
    ("sample_detection", detector_scores.show_samples),
    ("input_detection", detector_scores.show_inputs),
    ("loss_landscape", loss_landscape.show),
    ("inverted_trigger", inverted_triggers.show),
    ("relearning", relearning.show),
    ("robustness", robustness.show),
    ("report_samples", samples.show),
    ("", classes.show),
    ("model_detection", model_detection.show),
    ("features", features.show),
    ("", curves.show),
)
"""Sections on one attack, in the format of `OVERVIEW`."""


def write_page(run: RunFolder, tables: Tables) -> Path:
    """Write report.html and figures/*.png into a run folder; return the path of report.html.

    Figures of the earlier report are deleted; figures/made.json lists them.

    Args:
        run: the run folder; the page leaves out sections whose files are missing.
        tables: rows by the stem of their CSV file, such as "results".
    """
    figures = run.path / "figures"
    earlier = read_json(figures / "made.json")
    for name in earlier if isinstance(earlier, list) else []:
        if isinstance(name, str) and name == Path(name).name and name.endswith(".png"):
            remove(figures / name)  # it may belong to an earlier study
    before = _written(figures)
    study = study_of(run, tables)
    details = [
        (view.stem.name, view.attack.label, html)
        for view in views_of(study)
        if (html := Markup("").join(_sections(DETAILS, view, view.kinds))).strip()
    ]
    page = render(
        "page.html.j2",
        title=run.path.resolve().name,
        subtitle=_subtitle(study),
        headlines=drawn(partial(outcomes.show_headlines, study)),
        overview=_sections(OVERVIEW, study, {node.kind for node in run.manifest.nodes}),
        details=details,
        environment=run.environment(),
        config=run.text("config.yaml"),
    )
    if figures.is_dir():
        made = dict(_written(figures) - before)
        write_text(figures / "made.json", json.dumps(sorted(made)))
    write_text(run.path / "report.html", page)
    return run.path / "report.html"


def _written(figures: Path) -> set[tuple[str, int]]:
    """Return the name and time of writing of each PNG figure in the folder `figures`."""
    return {(picture.name, picture.stat().st_mtime_ns) for picture in figures.glob("*.png")}


def _sections(
    sections: Sequence[tuple[str, Callable[[Any], Markup]]], shown: Any, kinds: Container[str]
) -> list[Markup]:
    """Return the HTML of each section of the report page whose kind of node is in `kinds`.

    `shown` is what the sections show: a `Study` or a `View`.
    """
    return [drawn(partial(show, shown)) for kind, show in sections if not kind or kind in kinds]


def _subtitle(study: Study) -> str:
    counts = {
        word: len({row[name] for row in study.rows} - {"none"})
        for name, word in (("attack", "attack"), ("defense", "defence"), ("seed", "seed"))
    }
    manifest = study.run.manifest
    counts["evolution run"] = len(manifest.evolutions)
    parts = [manifest.dataset, manifest.model]
    parts += [f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items() if count]
    return " · ".join(filter(None, parts))
