"""What studies of evolving models say of the paper's claims C1 to C5 (arXiv 2206.04677): a table for each, with a verdict.

The claims have no numbers, so that what counts as true is ours. It was written down when eight lineages of C1 had ended and none of the
others, and changed once, after a review, before any table was made; what was changed later is said at its claim. T are the updates of a lineage, S_τ those that the backdoor survived before the ASR first fell
below τ; a row's condition must be met on every seed unless it says otherwise. Seeds whose backdoor did not work before the first update
(ASR below 50 %) are left out.

- C1, a one-shot backdoor does not survive a few updates, with larger triggers and more poison neither: S_0.5 is at most T / 2.
- C2, poison must go on: without it the ASR falls below 50 % within T, with it it never does. Where it stays without, nothing is decided;
  as it did under the constant rate on Fashion-MNIST, updates that forget (C4's `slanted`) were put beside it.
- C3, larger drift, faster forgetting: what the ASR is above the control's rate, averaged over updates and seeds, falls by a point or
  more with every step of the drift.
- C4, a smart schedule forgets in one update: S_0.5 is 0, and the mean ACC at most a point below that of the constant rate which
  validation of clean models chooses. At an equal mean rate: S_0.5 is 0, it is not under the constant rate of that mean, and the mean ACC is at most a
  point below that one's.
- C5, updates wear the backdoor down: the ASR is lower after an update than before it, on the same images, averaged over seeds, at every
  update before which it was at least 10 points above the control's rate.

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

from d3jax.evolution import survivability
from d3jax.rows import Row, read_csv
from d3jax.survival import ratio

WORKS = 0.5
"""ASR before the first update of a backdoor that works."""
LESS = 0.01
"""By how much a larger drift must lower the ASR."""
FLOOR = 0.1
"""By how much the ASR must be above the control's for an update to have something to wear down."""

SENTENCES = {
    1: "A one-shot backdoor is gone after half of the updates, with larger triggers and more poison too",
    2: "Without further poison the backdoor falls below an ASR of 50 %, with it it stays above",
    3: "The larger the drift, the lower the ASR",
    4: "A smart schedule takes the ASR below 50 % in one update, at no more than a point of ACC",
    5: "Every update lowers the ASR",
}


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

    def above(self, name: str, update: int) -> float:
        """A rate above the control's, which counts as 0 where there is none."""
        control = self.mean("control", update)
        return self.mean(name, update) - (0.0 if math.isnan(control) else control)

    @property
    def updates(self) -> range:
        return range(1, len(self.seeds[0]))


def read(folder: Path) -> dict[str, list[Lineages]]:
    """The lineages of a run folder by attack, those of clean models left out."""
    evolved, found = read_csv(folder / "evolution.csv"), {}
    for line in read_csv(folder / "survival.csv"):
        mine = [row for row in evolved if (row["attack"], row["evolution"]) == (line["attack"], line["evolution"])]
        if mine[0]["asr"] is None:
            continue
        seeds = [[row for row in mine if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in mine)]
        worked = [rows for rows in seeds if rows[0]["asr"] >= WORKS]
        found.setdefault(line["attack"], []).append(Lineages(line, worked))
    return found


Said = list[bool | None]
"""What is said of every row; None where there is nothing to say."""


def gone(one: Lineages) -> bool:
    """C1's condition."""
    return all(not censored and count <= len(one.updates) / 2 for count, censored in one.survived())


def at_once(one: Lineages) -> bool:
    """Whether a single update forgets it."""
    return all(count == 0 for count, _ in one.survived())


def worn(one: Lineages) -> bool:
    """C5's condition."""
    due = [update for update in one.updates if one.above("stale_asr", update) >= FLOOR]
    return all(one.mean("asr", update) < one.mean("stale_asr", update) for update in due)


def equal_mean(one: Lineages, rows: Sequence[Lineages]) -> Lineages | None:
    """The constant rate of its mean, if it was scaled to it."""
    return next((other for other in rows if other.name == one.line["baseline"]), None) if one.line["equal_mean"] else None


def judge(claim: int, rows: Sequence[Lineages]) -> tuple[Said, str]:
    """What is said of an attack's rows, and of the attack."""
    if not all(one.seeds for one in rows):
        return [None] * len(rows), "never worked"
    if claim == 2:
        parts = [list(part) for _, part in itertools.groupby(rows, lambda one: one.name.partition("-persistent")[0])]
        judged = [poisoned_on(part) for part in parts]
        verdicts = [
            f"{part[0].name.partition('-persistent')[0]} {verdict}" for part, (_, verdict) in zip(parts, judged, strict=True)
        ]
        return [true for said, _ in judged for true in said], ", ".join(verdicts)
    if claim == 3:
        means = [statistics.fmean(one.above("asr", update) for update in one.updates) for one in rows]
        falls = [after <= before - LESS for before, after in itertools.pairwise(means)]
        return [None, *falls], summary(falls, rows[1:])
    if claim == 4:
        return strategies(rows)
    said = [(gone if claim == 1 else worn)(one) for one in rows]
    return said, summary(said, rows)


def poisoned_on(rows: Sequence[Lineages]) -> tuple[Said, str]:
    """C2's judgement of lineages that differ in their further poison; the first has none."""
    lost = not any(censored for _, censored in rows[0].survived())
    stays = [all(censored for _, censored in one.survived()) for one in rows[1:]]
    return [lost, *stays], summary(stays, rows[1:]) if lost else "not decided, it stays without further poison too"


def summary(said: Sequence[bool], rows: Sequence[Lineages]) -> str:
    """Holds, does not hold, or only where."""
    if all(said):
        return "holds"
    true = [one.name for one, holds in zip(rows, said, strict=True) if holds]
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
    tell = lambda names: f"holds for {', '.join(names)}" if names else "does not hold"
    too = f" ({', '.join(found['constant'])} {'too' if found['steps'] else 'does'})" if found["constant"] else ""
    return said, f"at equal steps {tell(found['steps'])}{too}, at an equal mean rate {tell(found['mean'])}"


def shown(one: Lineages, claim: int) -> dict[str, str]:
    """A row of a table, by the column's head, without its verdict."""
    line, points = one.line, lambda value: "–" if math.isnan(value) else f"{100 * value:.0f}"
    cells = {
        "attack": line["attack"], "evolution": one.name,
        "S_0.5 by seed": " ".join(f"≥{count}" if censored else str(count) for count, censored in one.survived()),
        "ASR after update 0, 1, …": ", ".join(points(one.mean("asr", update)) for update in (0, *one.updates)),
        "control": ", ".join(points(one.mean("control", update)) for update in one.updates),
    }  # fmt: skip
    if claim == 5:
        changes = [one.mean("asr", update) - one.mean("stale_asr", update) for update in one.updates]
        cells["change by update"] = ", ".join("–" if math.isnan(change) else f"{100 * change:+.0f}" for change in changes)
        cells["score left"] = f"{one.mean('score', one.updates[-1]) / one.mean('score', 0):.2f}"
    cells |= {"ACC": f"{100 * line['acc']:.1f}", "Σ rates": f"{line['lr_mean'] * line['steps']:.2f}"}
    if line["baseline"] is not None:
        chosen = line["baseline"] == one.name
        counts: dict[Any, str] = {True: "counts", False: "ACC too low"}
        cells["held against"] = "chosen" if chosen else f"{line['baseline']}: {counts[line['counts']]}"
        cells["speed-up"] = "–" if chosen else ratio(line)
    return cells


def tell(claim: int, found: dict[str, list[Lineages]]) -> str:
    """A claim's table in Markdown."""
    lines, verdicts = [], []
    for attack, rows in found.items():
        said, verdict = judge(claim, rows)
        verdicts.append(f"{attack}: {verdict}")
        for one, true in zip(rows, said, strict=True):
            if one.seeds:
                lines.append(shown(one, claim) | {"so it is": {True: "yes", False: "no", None: "–"}[true]})
    head = list(dict.fromkeys(name for line in lines for name in line if name != "so it is")) + ["so it is"]
    body = [[line.get(name, "–") for name in head] for line in lines]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])
    return f"**C{claim}. {SENTENCES[claim]}.** {'; '.join(verdicts)}.\n\n{table}\n"


def main() -> None:
    """Prints the claims' tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", help="run folders, with {} for the claim's number")
    pattern = parser.parse_args().folders
    there = {claim: Path(pattern.format(claim)) for claim in SENTENCES}
    there = {claim: folder for claim, folder in there.items() if (folder / "survival.csv").is_file()}
    if not there:
        raise SystemExit(
            f"no survival.csv in {pattern} for any claim of 1 to {len(SENTENCES)}; run experiments/evolution_c1_….yaml"
        )
    for claim, folder in there.items():
        print(tell(claim, read(folder)))


if __name__ == "__main__":
    main()
