"""Features of every model, and how far the triggered lie from where they belong."""

import math

from ..plots.features import save_features
from ..rendering import Markup, Table, render
from ..view import View

COLUMNS = {"twin_distance": "Distance to clean twin", "silhouette": "Silhouette"}


def show(view: View) -> Markup:
    """Return PCA and t-SNE of every model's features with a table of distances."""
    found = {one.entry.label: one for one in view.finished("features")}
    if not found:
        return Markup("")
    points = {name: one.arrays for name, one in found.items()}
    path = save_features(view.path("features"), points, len(view.study.run.manifest.classes))
    rows = [
        (name, [_number(one.record.facts.get(key)) for key in COLUMNS])
        for name, one in found.items()
    ]
    known = any(cells[0] != "–" for _, cells in rows)
    table = Table([(title, "lower is better") for title in COLUMNS.values()], rows)
    inverted = any(one.record.facts.get("inverted") for one in found.values())
    values = {"inverted": inverted, "palette": view.study.palette}
    return render("features.html.j2", path=path, table=table if known else None, **values)


def _number(value: float | None) -> str:
    known = value is not None and math.isfinite(value)
    return f"{value:.3f}".replace("-", "−") if known else "–"
