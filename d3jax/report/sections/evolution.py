"""Evolving models: rates over updates, learning rates, survivability."""

from collections.abc import Sequence

from ...results.summary import points
from ...results.survival import TAUS, ratio, survived
from ...results.tables import Row
from ..plots.evolution import BANDED, save_energy, save_forgetting, save_learning_rates, save_rates
from ..rendering import Cell, Markup, Table, render
from ..view import View

COLUMNS = [("S", f"at ASR {tau:g}") for tau in TAUS] + [
    ("ACC", "mean"), ("Validation ACC", "mean"), ("Stale ACC", "mean"), ("Rate", "mean"), ("Speed-up", "at ASR 0.5")
]  # fmt: skip


def show(view: View) -> Markup:
    """Return what an attack's evolution runs did, and which of them did not end."""
    rows, colours = view.tables.get("evolution", ()), view.study.palette
    compared = view.tables.get("survival", ())
    labels = {node.label for node in view.nodes("evolution")}
    failed = [row for row in view.tables.get("results", ()) if row["defense"] in labels and row["status"] != "ok"]  # fmt: skip
    if not rows and not failed:
        return Markup("")
    every = view.study.tables.get("evolution", ())
    first = rows and rows[0] is every[0]  # the rates are the same for all attacks
    rates = {one.entry.label: one.arrays["rates"] for one in view.finished("updates") if first}
    predicted = {one.entry.label: one.arrays for one in view.finished("forgetting")}
    return render(
        "evolution.html.j2",
        failed=failed,
        rates=save_rates(view.path("evolution"), rows, colours),
        learning_rates=save_learning_rates(view.path("rates"), rates, colours),
        energy=save_energy(view.path("energy"), predicted),
        forgetting=save_forgetting(view.path("forgetting"), predicted, colours),
        table=Table(COLUMNS, [(row["evolution"], _cells(row)) for row in compared]),
        seeds=len({row["seed"] for row in rows}),
        banded=len({row["evolution"] for row in rows}) <= BANDED,
        equal_mean=any(row["equal_mean"] for row in compared),
        palette=colours,
    )


def _cells(row: Row) -> list[Cell]:
    """Return survivability, accuracy, and what a schedule gains over the best constant rate."""
    deviations = {name: row[f"{name}_std"] for name in ("acc", "valid_acc", "stale_acc")}
    spreads = {
        name: "" if std is None else f" ± {points(std, digits=1)}"
        for name, std in deviations.items()
    }
    accuracies = [f"{points(row[name], digits=1)}{spread}" for name, spread in spreads.items()]
    gain: Cell = (ratio(row), "ACC too low") if row["counts"] is False else ratio(row)
    gain = "chosen" if row["baseline"] == row["evolution"] else gain
    return [*(survived(row, tau) for tau in TAUS), *accuracies, f"{row['lr_mean']:.3g}", gain]


def headlines(compared: Sequence[Row]) -> dict[str, str]:
    """Return by attack one sentence from the rows of survival.csv.

    It says how long its backdoor survives the chosen learning rate, and where least.
    """
    attacks: dict[str, list[Row]] = {}
    for row in compared:
        if row["survived_0.5"] is not None:
            attacks.setdefault(row["attack"], []).append(row)
    return {attack: _headline(rows) for attack, rows in attacks.items()}


def _headline(rows: Sequence[Row]) -> str:
    chosen = next((row for row in rows if row["baseline"] == row["evolution"]), rows[0])
    shortest = min(rows, key=lambda row: (row["survived_0.5"], row["counts"] is False))
    others = sum(row["survived_0.5"] == shortest["survived_0.5"] for row in rows) - 1
    start = f"survives {survived(chosen, 0.5)} updates of {chosen['updates']} under {chosen['evolution']}"
    if shortest["survived_0.5"] >= chosen["survived_0.5"]:
        return f"{start}."
    more = f" and {others} more" if others else ""
    low = ", whose ACC is too low" if shortest["counts"] is False else ""
    return f"{start}; least under {shortest['evolution']}{more}, {survived(shortest, 0.5)}{low}."
