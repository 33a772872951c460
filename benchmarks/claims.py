"""What studies of evolving models say of the paper's claims C1 to C5 (arXiv 2206.04677): a table for each, with a verdict.

The claims have no numbers, so that what counts as true is ours. It was written down when eight lineages of C1 had ended and none of the
others, and changed after reviews, the second when the tables on Fashion-MNIST had been seen: C3 and C5 then went from the ASR to the
trigger's logit on the same images (drift alone moves an ASR, and at 100 % it shows nothing), C4's bar at an equal mean rate to that at equal steps, C1 asks of the end too. T are
the updates of a lineage, S_τ those that the backdoor survived before the ASR first fell
below τ; a row's condition must be met on every seed unless it says otherwise. Seeds whose backdoor did not work before the first update
(ASR below 50 %) are left out. `!` marks a seed on which the clean control's rate was ever above 25 %: what the trigger does there is not the backdoor's alone.

- C1, a one-shot backdoor does not survive a few updates, with larger triggers and more poison neither: S_0.5 is at most T / 2, and the ASR
  below 50 % at the end. Of updates that move BatchNorm's statistics alone nothing is said.
- C2, poison must go on: without it the ASR falls below 50 % within T, with it it never does. Asked of a constant rate, and of updates that
  forget more (C4's `slanted`), which were added when nothing was forgotten under the constant rate on Fashion-MNIST.
- C3, larger drift, faster forgetting: what the updates leave of the trigger's logit (see below) falls with every step of the drift.
- C4, a smart schedule forgets in one update: S_0.5 is 0, and the mean ACC at most a point below that of the constant rate which
  validation of clean models chooses. At an equal mean rate: likewise, and S_0.5 is not 0 under the constant rate of that mean.
- C5, updates wear the backdoor down: an update leaves less than 99 % of the trigger's logit, averaged over seeds, at every update before
  which the ASR was at least 10 points above the control's rate.

What an update leaves of the trigger's logit is by how much the trigger raises its class's logit after it over that before it, on the
same images; what all leave is the product.

Command: python benchmarks/claims.py 'runs/evolution_c{}_fashion_mnist' (run folders with {} for the claim's number; absent ones are left out)
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
"""ASR before the first update of a backdoor that works."""
LEFT = 0.99
"""An update that leaves less of the trigger's logit wears the backdoor down."""
FLOOR = 0.1
"""By how much the ASR must be above the control's for an update to have something to wear down."""
DOUBTED = 0.25
"""Control's rate above which an ASR is not the backdoor's alone."""

SENTENCES = {
    1: "A one-shot backdoor is gone after half of the updates, with larger triggers and more poison too",
    2: "Without further poison the backdoor falls below an ASR of 50 %, with it it stays above",
    3: "The larger the drift, the faster the backdoor is forgotten",
    4: "A smart schedule takes the ASR below 50 % in one update, at no more than a point of ACC",
    5: "Every update wears the backdoor down",
}


def logit_left(row: Row) -> float | None:
    """What an update leaves of the trigger's logit; None where it was not measured, NaN where it was not above 0 before."""
    after, before = row["score"], row.get("stale_score")
    return None if before is None else max(after, 0.0) / before if before > 0 else math.nan


class Lineages(NamedTuple):
    """One attack under one evolution: its line of survival.csv, and the rows of evolution.csv by seed and update, 0 first, of those
    seeds on which the backdoor worked."""

    line: Row
    seeds: list[list[Row]]

    @property
    def name(self) -> str:
        return self.line["evolution"]

    def survived(self) -> list[tuple[int, bool]]:
        """S_0.5 and whether it is censored, by seed."""
        return [survivability([row["asr"] for row in rows[1:]]) for rows in self.seeds]

    def mean(self, name: str, update: int) -> float:
        """A column after an update, over the seeds that have it; NaN where none has."""
        values = [rows[update][name] for rows in self.seeds if rows[update].get(name) is not None]
        return statistics.fmean(values) if values else math.nan

    def left(self, update: int) -> list[float]:
        """What an update leaves of the trigger's logit, by seed; none of those where it was not measured, or not above 0 before."""
        shares = [logit_left(rows[update]) for rows in self.seeds]
        return [share for share in shares if share is not None and not math.isnan(share)]

    def left_of_all(self) -> list[float | None]:
        """What all updates leave of it, by seed: 0 from where it is not above 0 on; None where one was not measured."""
        shares = [[logit_left(rows[update]) for update in self.updates] for rows in self.seeds]
        return [
            None
            if None in each
            else math.prod(0.0 if math.isnan(share) else share for share in each)
            for each in shares
        ]

    def doubted(self) -> list[bool]:
        """On which seeds the control says the target too."""
        return [
            any((rows[update].get("control") or 0.0) > DOUBTED for update in self.updates)
            for rows in self.seeds
        ]

    @property
    def updates(self) -> range:
        return range(1, len(self.seeds[0]))


def read(folder: Path) -> dict[str, list[Lineages]]:
    """The lineages of a run folder by attack, those of clean models left out."""
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
"""What is said of every row; None where there is nothing to say."""


def gone(one: Lineages) -> bool | None:
    """C1's condition."""
    if not one.line["lr_mean"]:
        return None
    early = all(
        not censored and count <= len(one.updates) / 2 for count, censored in one.survived()
    )
    return early and all(rows[-1]["asr"] < WORKS for rows in one.seeds)


def at_once(one: Lineages) -> bool:
    """Whether a single update forgets it."""
    return all(count == 0 for count, _ in one.survived())


def worn(one: Lineages) -> bool | None:
    """C5's condition."""

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
    """C3's condition; None where something was not measured."""
    pairs = list(zip(before.left_of_all(), after.left_of_all(), strict=True))
    return None if any(None in pair for pair in pairs) else all(y < x for x, y in pairs)


def equal_mean(one: Lineages, rows: Sequence[Lineages]) -> Lineages | None:
    """The constant rate of its mean, if it was scaled to it."""
    return next((other for other in rows if other.name == one.line["equal_mean"]), None)


def judge(claim: int, rows: Sequence[Lineages]) -> tuple[Said, str]:
    """What is said of an attack's rows, and of the attack."""
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
    """C2's judgement of lineages that differ in their further poison; the first has none."""
    alone = [censored for _, censored in rows[0].survived()]
    stays = [all(censored for _, censored in one.survived()) for one in rows[1:]]
    without = (
        f"does not hold, without further poison it stays on {sum(alone)} of {len(alone)} seeds"
    )
    return [not any(alone), *stays], without if any(alone) else summary(stays, rows[1:])


def summary(said: Said, rows: Sequence[Lineages]) -> str:
    """Holds, does not hold, or only where; rows of which nothing is said aside."""
    told = [(one.name, holds) for one, holds in zip(rows, said, strict=True) if holds is not None]
    if not told:
        return "nothing to say"
    true = [name for name, holds in told if holds]
    if len(true) == len(told):
        return "holds" if len(told) == len(rows) else f"holds for {', '.join(true)}"
    return f"only for {', '.join(true)}" if true else "does not hold"


def strategies(rows: Sequence[Lineages]) -> tuple[Said, str]:
    """C4's judgement: at equal steps, and at an equal mean rate."""
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
    """A row of a table, by the column's head, without its verdict."""
    line, points = one.line, lambda value: "–" if math.isnan(value) else f"{100 * value:.0f}"
    largest = [
        max((rows[update].get("control") or 0.0 for rows in one.seeds), default=0.0)
        for update in one.updates
    ]
    marks = ["!" if doubted else "" for doubted in one.doubted()]
    by_seed = zip(one.survived(), marks, strict=True)
    cells = {
        "attack": line["attack"], "evolution": one.name,
        "S_0.5 by seed": " ".join((f"≥{count}" if censored else str(count)) + mark for (count, censored), mark in by_seed),
        "ASR after update 0, 1, …": ", ".join(points(one.mean("asr", update)) for update in (0, *one.updates)),
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
    """A claim's table in Markdown."""
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
    """Prints the claims' tables."""
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
            f"no survival.csv in {pattern} for any claim of 1 to {len(SENTENCES)}; run experiments/evolution_c1_….yaml"
        )
    for claim, folder in there.items():
        print(tell(claim, read(folder)))


if __name__ == "__main__":
    main()
