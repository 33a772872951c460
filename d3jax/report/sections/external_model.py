"""The report page's section on an external model with an unknown trigger: what a study can show."""

from ...results.summary import points, summarise
from ..rendering import Markup, render
from ..view import Study, View, views_of
from .inverted_triggers import tables_of


def show(study: Study) -> Markup:
    """Return the HTML section on an external model, for each attack whose trigger is unknown."""
    return Markup("").join(_show(view) for view in views_of(study) if view.unknown)


def _show(view: View) -> Markup:
    rows = summarise(view.tables.get("results", ()))
    acc = {row["defense"]: points(row["acc"]) for row in rows if row["acc"] is not None}
    after = [f"{text} % with {name}" for name, text in acc.items() if name != "none"]
    return render(
        "external_model.html.j2",
        external=view.study.run.manifest.external,
        before=acc.get("none"),
        after=", ".join(after),
        repaired=any(row["defense"] != "none" for row in rows),
        flagged=flagged(view.study)[view.attack.label],
        triggers=tables_of(view.tables.get("triggers", ())),
    )


def flagged(study: Study) -> dict[str, list[str]]:
    """Return {attack: sentences on what each detection flags} for attacks of unknown trigger."""
    return {
        view.attack.label: [
            f"{one['detection']} (seed {one['seed']}) "
            f"flags {one['flagged_classes'] or 'no class'}. "
            f"Its statistic is {one['statistic']:.2f}; a value above {one['threshold']:.2f} "
            "indicates a backdoor."
            for one in view.tables.get("detections", ())
        ]
        for view in views_of(study)
        if view.unknown
    }
