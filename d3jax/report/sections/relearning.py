"""The report page's section on how much of its backdoor each model learns again."""

from ...results.summary import mean_spread
from ..rendering import Markup, Table, render
from ..view import View

COLUMNS = (
    ("ASR before", "asr_before"),
    ("ASR after", "asr"),
    ("ACC before", "acc_before"),
    ("ACC after", "acc"),
)


def show(view: View) -> Markup:
    """Return the HTML section with the ASR and ACC of each model before and after relearning."""
    rows = view.tables.get("relearned", ())
    labels = dict.fromkeys((row["evaluation"], row["defense"]) for row in rows)
    lines = []
    for evaluation, defense in labels:
        own = [row for row in rows if (row["evaluation"], row["defense"]) == (evaluation, defense)]
        cells = [mean_spread([row[name] for row in own], 100, 1) for _, name in COLUMNS]
        lines.append((defense, cells))
    first = rows[0] if rows else {}
    table = Table([(title, "") for title, _ in COLUMNS], lines)
    return render("relearning.html.j2", table=table, first=first)
