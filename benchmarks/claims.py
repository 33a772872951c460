"""Judge studies of evolving models by the paper's claims C1 to C5 (arXiv 2206.04677).

Prints a table with a verdict for each claim. The claims have no numbers, so the conditions are
d3jax's. They were written down when eight evolution runs of C1 had ended, and none of the others.
They were changed after two reviews. At the second, the tables on Fashion-MNIST had been seen. It
made these changes:

- C3 and C5 changed from the ASR to the trigger's logit on the same images, because drift alone
  changes an ASR, and an ASR of 100 % shows nothing.
- C4 has the same bar at an equal mean rate as at equal steps.
- C1 also asks about the ASR at the end.

T is the number of updates of an evolution run. S_τ is the number of updates that the backdoor
survives before the ASR first falls below τ. A row's condition must be met on every seed unless it
says otherwise. Seeds whose backdoor did not work before the first update (ASR below 50 %) are left
out. `!` marks a seed on which the clean control's rate was ever above 25 %. There the backdoor
alone does not explain the effect of the trigger.

- C1, a one-shot backdoor does not survive a few updates, even with larger triggers and more poison:
  S_0.5 is at most T / 2, and the ASR is below 50 % at the end. Updates that move only BatchNorm's
  statistics are not judged.
- C2, poisoning must continue: without further poison the ASR falls below 50 % within T, and with it
  never. This is asked of a constant rate, and of updates that forget more (C4's `slanted`). The
  latter were added when nothing was forgotten under the constant rate on Fashion-MNIST.
- C3, larger drift means faster forgetting: the share of the trigger's logit that remains (see
  below) falls with every step of the drift.
- C4, a smart schedule forgets in one update: S_0.5 is 0, and the mean ACC is at most a point below
  that of the constant rate which validation of clean models chooses. At an equal mean rate the same
  must hold, and S_0.5 must not be 0 under the constant rate of that mean.
- C5, updates wear the backdoor down: less than 99 % of the trigger's logit remains after an update,
  averaged over seeds. This is asked of every update before which the ASR was at least 10 points
  above the control's rate.

The trigger's logit is the amount by which the trigger raises the logit of its class. The share that
remains after an update is its ratio to the logit before the update, on the same images. The share
after all updates is the product of these ratios.

Command: python benchmarks/claims.py 'runs/evolution_c{}_fashion_mnist'

The argument names run folders, with {} for the claim's number. Absent folders are left out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d3jax.evolution.survivability import survivability
from d3jax.results.artifacts import Row
from d3jax.results.survival import ratio
from d3jax.results.tables import read_csv

WORKS = 0.5
"""The least ASR before the first update at which a backdoor works."""
LEFT = 0.99
"""The share of the trigger's logit below which an update wears the backdoor down."""
FLOOR = 0.1
"""The least excess of the ASR over the control's rate at which C5 judges an update."""
DOUBTED = 0.25
"""The control's rate above which the backdoor alone does not explain an ASR."""

SENTENCES = {
    1: "A one-shot backdoor is gone after half of the updates, "
    "with larger triggers and more poison too",
    2: "Without further poison the backdoor falls below an ASR of 50 %, with it it stays above",
    3: "The larger the drift, the faster the backdoor is forgotten",
    4: "A smart schedule takes the ASR below 50 % in one update, at no more than a point of ACC",
    5: "Every update wears the backdoor down",
}


def logit_left(row: Row) -> float | None:
    """Return the share of the trigger's logit that remains after an update.

    It is None if the logit was not measured, and NaN if it was not above 0 before the update.
    """
    after, before = row["score"], row.get("stale_score")
    return None if before is None else max(after, 0.0) / before if before > 0 else math.nan


class Lineages(NamedTuple):
    """The evolution runs of one attack under one evolution.

    `line` is their row of survival.csv. `seeds` holds the rows of evolution.csv by update, from 0
    on, for each seed on which the backdoor worked.
    """

    line: Row
    seeds: list[list[Row]]

    @property
    def name(self) -> str:
        return self.line["evolution"]

    def survived(self) -> list[tuple[int, bool]]:
        """Return S_0.5 and whether it is censored, for each seed."""
        return [survivability([row["asr"] for row in rows[1:]]) for rows in self.seeds]

    def mean(self, name: str, update: int) -> float:
        """Return a column's mean over seeds after an update; NaN if no seed has a value."""
        values = [rows[update][name] for rows in self.seeds if rows[update].get(name) is not None]
        return statistics.fmean(values) if values else math.nan

    def left(self, update: int) -> list[float]:
        """Return the share of the trigger's logit that remains after an update, for each seed.

        Seeds on which the logit was not measured, or not above 0 before, are left out.
        """
        shares = [logit_left(rows[update]) for rows in self.seeds]
        return [share for share in shares if share is not None and not math.isnan(share)]

    def left_of_all(self) -> list[float | None]:
        """Return the share of the trigger's logit that remains after all updates, for each seed.

        It is 0 if the logit was not above 0 before one of them. It is None if the logit was not
        measured at one of them.
        """
        shares = [[logit_left(rows[update]) for update in self.updates] for rows in self.seeds]
        return [
            None
            if None in each
            else math.prod(0.0 if math.isnan(share) else share for share in each)
            for each in shares
        ]

    def doubted(self) -> list[bool]:
        """Return for each seed whether the control's rate was ever above `DOUBTED`."""
        return [
            any((rows[update].get("control") or 0.0) > DOUBTED for update in self.updates)
            for rows in self.seeds
        ]

    @property
    def updates(self) -> range:
        return range(1, len(self.seeds[0]))


def read(folder: Path) -> dict[str, list[Lineages]]:
    """Return the evolution runs of a run folder by attack, without those of clean models."""
    evolved, found = read_csv(folder / "evolution.csv"), {}
    for line in read_csv(folder / "survival.csv"):
        mine = [
            row
            for row in evolved
            if (row["attack"], row["evolution"]) == (line["attack"], line["evolution"])
        ]
        if mine[0]["asr"] is None:
            continue
        seeds = [
            [row for row in mine if row["seed"] == seed]
            for seed in dict.fromkeys(row["seed"] for row in mine)
        ]
        worked = [rows for rows in seeds if rows[0]["asr"] >= WORKS]
        found.setdefault(line["attack"], []).append(Lineages(line, worked))
    return found


Said = list[bool | None]
"""Whether the claim holds for each row; None for a row that is not judged."""


def gone(one: Lineages) -> bool | None:
    """Return whether C1's condition is met; None if only the statistics move."""
    if not one.line["lr_mean"]:
        return None
    early = all(
        not censored and count <= len(one.updates) / 2 for count, censored in one.survived()
    )
    return early and all(rows[-1]["asr"] < WORKS for rows in one.seeds)


def at_once(one: Lineages) -> bool:
    """Return whether the first update alone brings the ASR below 50 %, on every seed."""
    return all(count == 0 for count, _ in one.survived())


def worn(one: Lineages) -> bool | None:
    """Return whether C5's condition is met; None if it applies to no update."""

    def control(update):
        return 0.0 if math.isnan(one.mean("control", update)) else one.mean("control", update)

    due = [
        update
        for update in one.updates
        if one.mean("stale_asr", update) >= FLOOR + control(max(update - 1, 1))
    ]
    return (
        all(statistics.fmean(one.left(update) or [math.inf]) < LEFT for update in due)
        if due
        else None
    )


def falls(before: Lineages, after: Lineages) -> bool | None:
    """Return whether C3's condition is met between two drifts, on every seed.

    It is None if a logit was not measured.
    """
    pairs = list(zip(before.left_of_all(), after.left_of_all(), strict=True))
    return None if any(None in pair for pair in pairs) else all(y < x for x, y in pairs)


def equal_mean(one: Lineages, rows: Sequence[Lineages]) -> Lineages | None:
    """Return the run at the constant rate to whose mean `one` was scaled; None without one."""
    return next((other for other in rows if other.name == one.line["equal_mean"]), None)


def judge(claim: int, rows: Sequence[Lineages]) -> tuple[Said, str]:
    """Return whether the claim holds for each of an attack's rows, and a verdict in words."""
    if not all(one.seeds for one in rows):
        return [None] * len(rows), "never worked"
    if claim == 2:
        parts = [
            list(part)
            for _, part in itertools.groupby(rows, lambda one: one.name.partition("-persistent")[0])
        ]
        judged = [poisoned_on(part) for part in parts]
        verdicts = [
            f"{part[0].name.partition('-persistent')[0]} {verdict}"
            for part, (_, verdict) in zip(parts, judged, strict=True)
        ]
        return [true for said, _ in judged for true in said], ", ".join(verdicts)
    if claim == 3:
        steps = [falls(before, after) for before, after in itertools.pairwise(rows)]
        return [None, *steps], summary(steps, rows[1:])
    if claim == 4:
        return strategies(rows)
    said = [(gone if claim == 1 else worn)(one) for one in rows]
    return said, summary(said, rows)


def poisoned_on(rows: Sequence[Lineages]) -> tuple[Said, str]:
    """Judge C2 on runs that differ in their further poison; the first of the rows has none."""
    alone = [censored for _, censored in rows[0].survived()]
    stays = [all(censored for _, censored in one.survived()) for one in rows[1:]]
    without = (
        f"does not hold, without further poison it stays on {sum(alone)} of {len(alone)} seeds"
    )
    return [not any(alone), *stays], without if any(alone) else summary(stays, rows[1:])


def summary(said: Said, rows: Sequence[Lineages]) -> str:
    """Return the verdict in words: the claim holds, does not hold, or holds for some rows.

    Rows that are not judged are skipped.
    """
    told = [(one.name, holds) for one, holds in zip(rows, said, strict=True) if holds is not None]
    if not told:
        return "nothing to say"
    true = [name for name, holds in told if holds]
    if len(true) == len(told):
        return "holds" if len(told) == len(rows) else f"holds for {', '.join(true)}"
    return f"only for {', '.join(true)}" if true else "does not hold"


def strategies(rows: Sequence[Lineages]) -> tuple[Said, str]:
    """Judge C4 at equal steps and at an equal mean rate."""
    found: dict[str, list[str]] = {"steps": [], "mean": [], "constant": []}
    said: Said = []
    for one in rows:
        against, true = equal_mean(one, rows), at_once(one) and one.line["counts"] is True
        true = true and not (against and at_once(against))
        kind = "constant" if one.line["constant"] else "mean" if against else "steps"
        said.append(true)
        if true:
            found[kind].append(one.name)

    def tell(names):
        return f"holds for {', '.join(names)}" if names else "does not hold"

    too = (
        f" ({', '.join(found['constant'])} {'too' if found['steps'] else 'does'})"
        if found["constant"]
        else ""
    )
    return (
        said,
        f"at equal steps {tell(found['steps'])}{too}, at an equal mean rate {tell(found['mean'])}",
    )


def shown(one: Lineages, claim: int) -> dict[str, str]:
    """Return a row of a claim's table by column heading, without its verdict."""
    line, points = one.line, lambda value: "–" if math.isnan(value) else f"{100 * value:.0f}"
    largest = [
        max((rows[update].get("control") or 0.0 for rows in one.seeds), default=0.0)
        for update in one.updates
    ]
    marks = ["!" if doubted else "" for doubted in one.doubted()]
    by_seed = zip(one.survived(), marks, strict=True)
    cells = {
        "attack": line["attack"], "evolution": one.name,
        "S_0.5 by seed": " ".join(
            (f"≥{count}" if censored else str(count)) + mark
            for (count, censored), mark in by_seed
        ),
        "ASR after update 0, 1, …": ", ".join(
            points(one.mean("asr", update)) for update in (0, *one.updates)
        ),
        "at the end, by seed": " ".join(points(rows[-1]["asr"]) for rows in one.seeds),
        "control, largest": ", ".join(map(points, largest)),
    }  # fmt: skip
    if claim == 3:
        cells["logit left, by seed"] = " ".join(
            "–" if value is None else f"{value:.2f}" for value in one.left_of_all()
        )
    if claim == 5:
        means = [
            statistics.fmean(one.left(update)) if one.left(update) else math.nan
            for update in one.updates
        ]
        cells["logit left by update"] = ", ".join(
            "–" if math.isnan(mean) else f"{mean:.2f}" for mean in means
        )
    spread = "" if line.get("acc_std") is None else f" ± {100 * line['acc_std']:.1f}"
    cells |= {
        "ACC": f"{100 * line['acc']:.1f}{spread}",
        "Σ rates": f"{line['lr_mean'] * line['steps']:.2f}",
    }
    if claim in (1, 4) and line["baseline"] is not None:
        chosen = line["baseline"] == one.name
        counts: dict[Any, str] = {True: "counts", False: "ACC too low", None: "seeds are missing"}
        cells["beside the rate that validation chooses"] = (
            "it is" if chosen else counts[line["counts"]]
        )
        cells["speed-up"] = (
            "–"
            if chosen
            else ratio(line) + (f" over {line['equal_mean']}" if line["equal_mean"] else "")
        )
    return cells


def tell(claim: int, found: dict[str, list[Lineages]]) -> str:
    """Return a claim's verdicts and table in Markdown."""
    lines, verdicts = [], []
    for attack, rows in found.items():
        said, verdict = judge(claim, rows)
        verdicts.append(f"{attack}: {verdict}")
        for one, true in zip(rows, said, strict=True):
            if one.seeds:
                lines.append(
                    shown(one, claim) | {"so it is": {True: "yes", False: "no", None: "–"}[true]}
                )
    head = list(dict.fromkeys(name for line in lines for name in line if name != "so it is")) + [
        "so it is"
    ]
    body = [[line.get(name, "–") for name in head] for line in lines]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])
    return f"**C{claim}. {SENTENCES[claim]}.** {'; '.join(verdicts)}.\n\n{table}\n"


def main() -> None:
    """Print the claims' tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", help="run folders, with {} for the claim's number")
    pattern = parser.parse_args().folders
    there = {claim: Path(pattern.format(claim)) for claim in SENTENCES}
    there = {
        claim: folder for claim, folder in there.items() if (folder / "survival.csv").is_file()
    }
    if not there:
        raise SystemExit(
            f"no survival.csv in {pattern} for any claim of 1 to {len(SENTENCES)}; "
            "run experiments/evolution_c1_….yaml"
        )
    for claim, folder in there.items():
        print(tell(claim, read(folder)))


if __name__ == "__main__":
    main()
