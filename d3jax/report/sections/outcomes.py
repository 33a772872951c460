"""The report page's sections on all defences: main results, overview, results and glossary."""

from ...results.outcomes import ADDED, OUTCOMES
from ...results.summary import RATES, group_of, headline, points
from ..rendering import Markup, render
from ..view import Study
from . import evolution, external_model

Key = tuple[str, str, str]


def show_headlines(study: Study) -> Markup:
    """Return the HTML of a study's main results: a few sentences on each attack."""
    compared = study.tables.get("survival")
    survival = evolution.headlines(compared) if compared else {}
    flagged = external_model.flagged(study) if study.run.manifest.external else {}
    lines = [
        (label_of(key, study), text)
        for key, rows in study.groups.items()
        for text in (headline(rows), survival.get(key[2]), *flagged.get(key[2], ()))
        if text
    ]
    return render("headlines.html.j2", lines=lines, groups=study.groups.values())


def show_glance(study: Study) -> Markup:
    """Return the HTML overview table with the ASR of each defence under each attack.

    It is empty for a single attack, or for fewer than two defences.
    """
    groups = [(label_of(key, study), rows) for key, rows in study.groups.items()]
    defenses = list(dict.fromkeys(row["defense"] for _, rows in groups for row in rows))
    values = {"groups": groups, "defenses": defenses, "palette": study.palette}
    return render("glance.html.j2", **values)


def show_table(study: Study) -> Markup:
    """Return the HTML table of all rates before and after each defence, over seeds."""
    groups = [
        (label_of(key, study), _about(key, study), rows) for key, rows in study.groups.items()
    ]
    return render(
        "outcomes.html.j2",
        groups=groups,
        rates=rates_of(study),
        published=any(row["published"] for _, _, rows in groups for row in rows),
        several=len({row["seed"] for row in study.rows}) > 1,
        searched=any(row.get("search_seconds") for row in study.rows),
        palette=study.palette,
    )


def show_glossary(study: Study) -> Markup:
    """Return the HTML definitions of the rates and outcomes that appear in the study."""
    values = {"outcomes": OUTCOMES, "added": ADDED, "rates": rates_of(study)}
    return render("glossary.html.j2", groups=study.groups, **values)


def rates_of(study: Study) -> list[str]:
    """Return the names of the rates (ACC, ASR …) that a study has; without a trigger only ACC."""
    rows = [row for group in study.groups.values() for row in group]
    return [rate for rate in RATES if any(row[rate] is not None for row in rows)] or ["acc"]


def label_of(key: Key, study: Study) -> tuple[str, str]:
    """Return an attack's name, with data set and model where the study has several of these."""
    several = [i for i in (0, 1) if len({other[i] for other in study.groups}) > 1]
    return key[2], ", ".join(key[i] for i in several)


def _about(key: Key, study: Study) -> str:
    """Return poison rates, targets and number of seeds of one attack and net as text."""
    rows = [row for row in study.rows if group_of(row) == key]
    rates = dict.fromkeys(row["poison_rate"] for row in rows)
    shown = ", ".join(f"{points(rate, digits=2)} %" for rate in rates if rate is not None)
    poison = f"poison rate {shown}" if shown else "trained elsewhere"
    seeds = len({row["seed"] for row in rows})
    attack = next((one for one in study.run.manifest.attacks if one.label == key[2]), None)
    if attack and attack.attacked and 0 < len(attack.targets) < 4:
        classes = study.run.manifest.classes
        poison += " · target " + ", ".join(classes[label] for label in sorted(attack.targets))
    return f"{poison}{' (pooled)' * (len(rates) > 1)} · {seeds} seed{'s' * (seeds > 1)}"
