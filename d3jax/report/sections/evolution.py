"""The report page's section on evolution runs: rates, learning rates and survivability."""

from collections.abc import Sequence

from ...core.records import Row
from ...results.summary import spread
from ...results.survival import TAUS, ratio, survived
from ..plots.evolution import BANDED, save_energy, save_forgetting, save_learning_rates, save_rates
from ..rendering import Cell, Markup, Table, render
from ..view import View

COLUMNS = [("S", f"ASR ≥ {tau:g}") for tau in TAUS] + [
    ("ACC", "mean"),
    ("Validation ACC", "mean"),
    ("Stale ACC", "mean"),
    ("Learning rate", "mean"),
    ("Speed-up", "ASR ≥ 0.5"),
]


def show(view: View) -> Markup:
    """Return the HTML section on an attack's evolution runs: figures, table and failed runs."""
    rows, compared = view.tables.get("evolution", ()), view.tables.get("survival", ())
    labels = view.study.run.manifest.labels("evolution")
    ended = [row for row in view.tables.get("results", ()) if row["defense"] in labels]
    # All attacks share the learning rates, so only the first attack shows them.
    first = rows and rows[0] is view.study.tables["evolution"][0]
    evolutions = view.study.run.manifest.evolutions if first else []
    predicted = {one.entry.label: one.arrays for one in view.finished("forgetting")}
    return render(
        "evolution.html.j2",
        failed=[row for row in ended if row["status"] != "ok"],
        rates=save_rates(view.path("evolution"), rows, view.study.palette),
        learning_rates=save_learning_rates(view.path("rates"), evolutions, view.study.palette),
        energy=save_energy(view.path("energy"), predicted),
        forgetting=save_forgetting(view.path("forgetting"), predicted, view.study.palette),
        table=Table(COLUMNS, [(row["evolution"], _cells(row)) for row in compared]),
        seeds=len({row["seed"] for row in rows}),
        banded=len({row["evolution"] for row in rows}) <= BANDED,
        equal_mean=any(row["equal_mean"] for row in compared),
        palette=view.study.palette,
    )


def _cells(row: Row) -> list[Cell]:
    """Return the cells of the page's table for one evolution, from its row of survival.csv."""
    gain: Cell = (ratio(row), "ACC too low") if row["counts"] is False else ratio(row)
    return [
        *(survived(row, tau) for tau in TAUS),
        *(spread(row, name, digits=1) for name in ("acc", "valid_acc", "stale_acc")),
        f"{row['lr_mean']:.3g}",
        "chosen" if row["baseline"] == row["evolution"] else gain,
    ]


def headlines(compared: Sequence[Row]) -> dict[str, str]:
    """Return by attack one or two sentences on how many updates its backdoor survives.

    They give the survival under the chosen constant learning rate and under the rates with the
    shortest survival.

    Args:
        compared: rows of survival.csv.
    """
    known = [row for row in compared if row["survived_0.5"] is not None]
    return {
        attack: _headline([row for row in known if row["attack"] == attack])
        for attack in dict.fromkeys(row["attack"] for row in known)
    }


def _headline(rows: Sequence[Row]) -> str:
    chosen = next((row for row in rows if row["baseline"] == row["evolution"]), rows[0])
    shortest = min(rows, key=lambda row: (row["survived_0.5"], row["counts"] is False))
    others = sum(row["survived_0.5"] == shortest["survived_0.5"] for row in rows) - 1
    start = (
        f"The backdoor survives {survived(chosen, 0.5)} of {chosen['updates']} updates "
        f"(ASR ≥ 50 %) with {chosen['evolution']}"
    )
    if shortest["survived_0.5"] >= chosen["survived_0.5"]:
        return f"{start}."
    more = f" and {others} more" if others else ""
    low = ", but the ACC is too low to count" if shortest["counts"] is False else ""
    return (
        f"{start}. It survives the fewest updates with {shortest['evolution']}{more}: "
        f"{survived(shortest, 0.5)}{low}."
    )
