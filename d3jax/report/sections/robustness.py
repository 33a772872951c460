"""The report page's section on the ASR of each model when the trigger changes."""

from ..plots.robustness import save_robustness
from ..rendering import Markup, render
from ..view import View


def show(view: View) -> Markup:
    """Return the HTML section with one figure of ASR over changes for each evaluation."""
    rows = view.tables.get("robustness", ())
    figures = []
    for number, label in enumerate(dict.fromkeys(row["evaluation"] for row in rows)):
        own = [row for row in rows if row["evaluation"] == label]
        path = view.path(f"robustness-{number}" if number else "robustness")
        figures.append((label, save_robustness(path, own, view.study.palette)))
    seeds = len({row["seed"] for row in rows})
    return render("robustness.html.j2", figures=figures, seeds=seeds)
