"""report.html: one page, needing no other file, that shows what a study found. No jax."""

from functools import partial
from pathlib import Path

from ..results.artifacts import RunFolder
from ..runtime.files import write_text
from .rendering import Markup, drawn, render
from .sections import (  # fmt: skip
    classes,
    curves,
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
    outcomes.show_glance, external_model.show, outcomes.show_table, model_detection.show_table,
    outcomes.show_glossary,
)  # fmt: skip
DETAILS = (
    evolution.show, training_time.show, loss_landscape.show, inverted_triggers.show, samples.show,
    classes.show, model_detection.show, features.show, curves.show,
)  # fmt: skip


def write_page(run: RunFolder, tables: Tables) -> Path:
    """Write report.html into a run folder, one page that needs no other file, and figures/*.png.

    Args:
        run: the folder; what is missing in it is left out of the page.
        tables: rows by the stem of their CSV file, such as "results".
    """
    for picture in (run.path / "figures").glob("*.png"):
        picture.unlink(missing_ok=True)  # it may be an earlier study's
    study = study_of(run, tables)
    details = [
        (view.stem.name, view.attack.label, html)
        for view in views_of(study)
        if (html := Markup("").join(drawn(partial(show, view)) for show in DETAILS)).strip()
    ]
    page = render(
        "page.html.j2",
        title=run.path.resolve().name,
        subtitle=_subtitle(study),
        headlines=drawn(partial(outcomes.show_headlines, study)),
        overview=[drawn(partial(show, study)) for show in OVERVIEW],
        details=details,
        environment=run.environment(),
        config=run.text("config.yaml"),
    )
    write_text(run.path / "report.html", page)
    return run.path / "report.html"


def _subtitle(study: Study) -> str:
    parts = [
        ", ".join(dict.fromkeys(str(row[name]) for row in study.rows))
        for name in ("dataset", "model")
    ]
    counts = {
        word: len({row[name] for row in study.rows} - {"none"})
        for name, word in (("attack", "attack"), ("defense", "defence"), ("seed", "seed"))
    }
    nodes = study.run.manifest.nodes
    counts["evolution"] = len({node.label for node in nodes if node.kind == "evolution"})
    parts += [f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items() if count]
    return " · ".join(filter(None, parts))
