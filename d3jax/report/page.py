"""report.html: one page, needing no other file, that shows what a study found. No jax."""

from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..results.artifacts import RunFolder
from ..runtime.files import remove, write_text
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
"""Sections on the whole study, each with the kind of node that it shows ("": all kinds)."""
DETAILS = (
    ("evolution", evolution.show),
    ("training_time", training_time.show),
    ("sample_detection", detector_scores.show_samples),
    ("input_detection", detector_scores.show_inputs),
    ("loss_landscape", loss_landscape.show),
    ("inverted_trigger", inverted_triggers.show),
    ("report_samples", samples.show),
    ("", classes.show),
    ("model_detection", model_detection.show),
    ("features", features.show),
    ("", curves.show),
)
"""Sections on one attack, likewise."""


def write_page(run: RunFolder, tables: Tables) -> Path:
    """Write report.html into a run folder, one page that needs no other file, and figures/*.png.

    Args:
        run: the folder; what is missing in it is left out of the page.
        tables: rows by the stem of their CSV file, such as "results".
    """
    for picture in (run.path / "figures").glob("*.png"):
        remove(picture)  # it may be an earlier study's
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
    write_text(run.path / "report.html", page)
    return run.path / "report.html"


def _sections(
    sections: Sequence[tuple[str, Callable[[Any], Markup]]], shown: Any, kinds: Container[str]
) -> list[Markup]:
    """Return the sections whose kinds of node a study or an attack of it has."""
    return [drawn(partial(show, shown)) for kind, show in sections if not kind or kind in kinds]


def _subtitle(study: Study) -> str:
    counts = {
        word: len({row[name] for row in study.rows} - {"none"})
        for name, word in (("attack", "attack"), ("defense", "defence"), ("seed", "seed"))
    }
    manifest = study.run.manifest
    counts["evolution"] = len(manifest.evolutions)
    parts = [manifest.dataset, manifest.model]
    parts += [f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items() if count]
    return " · ".join(filter(None, parts))
