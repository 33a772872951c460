"""The report page's section on models' penultimate features of clean and triggered images."""

import math

from ..plots.features import save_features
from ..rendering import Markup, Table, render
from ..view import View

COLUMNS = {"twin_distance": "Distance to clean twin", "silhouette": "Silhouette"}


def show(view: View) -> Markup:
    """Return the HTML section with PCA and t-SNE plots of features, and a table of distances."""
    found = {one.entry.label: one for one in view.finished("features")}
    points = {name: one.arrays for name, one in found.items()}
    facts = [one.record.facts for one in found.values()]
    rows = [
        (name, [_number(one.record.facts.get(key)) for key in COLUMNS])
        for name, one in found.items()
    ]
    return render(
        "features.html.j2",
        path=save_features(view.path("features"), points, len(view.study.run.manifest.classes)),
        table=Table([(title, "lower is better") for title in COLUMNS.values()], rows),
        known=any(cells[0] != "–" for _, cells in rows),
        inverted=any(one.get("inverted") for one in facts),
        palette=view.study.palette,
    )


def _number(value: float | None) -> str:
    known = value is not None and math.isfinite(value)
    return f"{value:.3f}".replace("-", "−") if known else "–"
