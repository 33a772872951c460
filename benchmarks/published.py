"""Print every published cell beside what d3jax measured, or "not measured".

    python benchmarks/published.py

A cell is the ACC and ASR of one data set, net, attack, defence and poison rate. Published cells are
in benchmarks/published/: BackdoorBench's leaderboard and result files (one seed each), and the
papers of D3, MCL, NAD and ABL. Ours are the files that `OURS` names. The page is in Markdown;
docs/results/published.md is made from it.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from d3jax.core.records import Row
from d3jax.results.tables import read_csv

HERE = Path(__file__).parent
OURS = {
    "cifar10_d3_narrow.csv": "15 epochs",
    "cifar10_attacks_narrow.csv": "15 epochs",
    "cifar10_mcl_narrow.csv": "10 epochs",
    "cifar10_mcl_wrn.csv": "10 epochs, pattern checker",
    "clp_pairing_cifar10/results.csv": "10 epochs of 10,000 images",
    "dlp_cifar10/results.csv": "10 epochs of 10,000 images",
    "nad_wrn_cifar10/results.csv": "the model of NAD's authors",
    "table-badnets_nvidia_h200.json": "100 epochs",
}
"""The files in benchmarks/results that have rows beside published cells, and how their victims were
trained. A file with a sweep over a setting is not among them."""
MODELS = {"nad_wrn_cifar10/results.csv": "NAD's release"}
"""The source whose model the rows of a file begin with. They stand beside its numbers only."""
ATTACKS = {"grid": "badnets"}
"""The names of attacks whose rows have a label of their own."""
NEAR = 2.0
"""Points up to which a rate agrees with the published one."""


class Cell(NamedTuple):
    """What identifies a published cell; `rate` is the poison rate."""

    dataset: str
    model: str
    attack: str
    defense: str
    rate: float


class Published(NamedTuple):
    """Published rates in percent. `others` says that ACC leaves out the target's images."""

    source: str
    acc: float | None
    asr: float | None
    others: bool


def published() -> dict[Cell, list[Published]]:
    """Return the published rates of every cell."""
    found: dict[Cell, list[Published]] = {}
    for name in ("papers.csv", "backdoorbench.csv"):
        with (HERE / "published" / name).open(encoding="utf8", newline="") as file:
            for row in csv.DictReader(file):
                what = (row[key] for key in ("dataset", "model", "attack", "defense"))
                acc, asr = (float(row[key]) if row[key] else None for key in ("acc", "asr"))
                others = row.get("acc_is") == "without the target"
                rates = Published(row["source"], acc, asr, others)
                found.setdefault(Cell(*what, float(row["poison_rate"])), []).append(rates)
    return found


def ours() -> list[Row]:
    """Return the rows of our files, with the way of training as `recipe`."""
    rows: list[Row] = []
    for name, recipe in OURS.items():
        path = HERE / "results" / name
        found = json.loads(path.read_text())["rows"] if path.suffix == ".json" else read_csv(path)
        about = {"recipe": recipe, "model_of": MODELS.get(name)}
        rows += [row | about for row in found if row["acc"] is not None]
    return rows


def cell_of(row: Row) -> Cell:
    """Return the cell of one of our rows: labels without their preset, rate or variant."""
    attack = re.sub(r"-\d+$", "", row["attack"])
    attack = ATTACKS.get(attack, attack)
    defense = row["defense"].split("-")[0]
    dataset = "cifar10" if row["dataset"] == "c" else row["dataset"]  # a file called c.npz
    rate = 0.1 if row["poison_rate"] == 12 / 128 else row["poison_rate"]  # 12 images a batch
    if rate is None:  # the model is other people's, and the label says the rate
        rate = int(row["attack"].rpartition("-")[2]) / 100
    return Cell(dataset, row["model"], attack, defense, rate)


def groups(rows: Iterable[Row]) -> dict[tuple, list[Row]]:
    """Return our rows by net, training and label of the defence."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault((row["net"], row["recipe"], row["defense"]), []).append(row)
    return found


def models(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of different models: a victim that several seeds share counts once."""
    if rows[0]["defense"] != "none":
        return list(rows)
    return list({row.get("attack_seed", row["seed"]): row for row in rows}.values())


def mean(rows: Sequence[Row], name: str) -> float | None:
    """Return the mean of a rate in percent; None if no row has it."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return 100 * statistics.fmean(values) if values else None


def compared(cells: Mapping[Cell, list[Published]], rows: Sequence[Row]) -> list[list[str]]:
    """Return the lines of the table of published cells that we have measured."""
    own: dict[Cell, list[Row]] = {}
    for row in rows:
        own.setdefault(cell_of(row), []).append(row)
    lines = []
    for cell, sources in cells.items():
        for theirs in sources:
            beside = [
                row for row in own.get(cell, ()) if row.get("model_of") in (None, theirs.source)
            ]
            for (net, recipe, label), all_rows in groups(beside).items():
                found = models(all_rows)
                acc = mean(found, "acc_non_target" if theirs.others else "acc")
                asr = mean(found, "asr")
                lines.append(
                    [
                        theirs.source,
                        cell.model,
                        cell.attack,
                        f"{100 * cell.rate:g} %",
                        label,
                        _rates(theirs.acc, theirs.asr),
                        f"{net}, {recipe}",
                        str(len(found)),
                        _rates(acc, asr),
                        _apart((acc, asr), (theirs.acc, theirs.asr)),
                    ]
                )
    return lines


def _rates(*values: float | None) -> str:
    return " / ".join("–" if value is None else f"{value:.2f}" for value in values)


def _apart(measured: Sequence[float | None], wanted: Sequence[float | None]) -> str:
    """Return the differences of ACC and ASR, and whether both are near."""
    pairs = zip(measured, wanted, strict=True)
    gaps = [None if a is None or b is None else a - b for a, b in pairs]
    near = all(abs(gap) <= NEAR for gap in gaps if gap is not None)
    shown = " / ".join("–" if gap is None else f"{gap:+.1f}".replace("-", "−") for gap in gaps)
    return f"{shown}{', near' if near else ''}"


def missing(cells: Mapping[Cell, list[Published]], rows: Sequence[Row]) -> list[list[str]]:
    """Return the lines of the table of published cells that we have not measured."""
    known, left = {cell_of(row) for row in rows}, {}
    for cell, sources in cells.items():
        if cell not in known:
            for theirs in sources:
                group = left.setdefault((theirs.source, cell.dataset, cell.model, cell.defense), [])
                group.append(cell)
    return [
        [*key, ", ".join(dict.fromkeys(cell.attack for cell in found)), str(len(found))]
        for key, found in left.items()
    ]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page() -> str:
    """Return the page: counts, the cells that we have, and those that we lack."""
    cells, rows = published(), ours()
    have, lack = compared(cells, rows), missing(cells, rows)
    total = sum(map(len, cells.values()))
    without = sum(int(line[-1]) for line in lack)
    head = "source,net,attack,rate,defence,published,measured with,models,measured,apart"
    explained = (
        "Rates are ACC / ASR in percent. ACC is without the target's images where the source's is. "
        "*Apart* is ours minus the published; *near* says that both differ by at most "
        f"{NEAR:g} points. A net of another width is not the published net."
    )
    parts = [
        f"{total} published cells; {total - without} measured, {without} not measured.",
        "## Measured",
        explained,
        table(head.split(","), have),
        "## Not measured",
        table(["source", "data set", "net", "defence", "attacks", "cells"], lack),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page())
