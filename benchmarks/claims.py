"""What studies of evolving models say of the paper's claims C1 to C5 (arXiv 2206.04677): a table for each, with a verdict.

The claims have no numbers, so that what counts as true is ours, and was written down before the runs. T are the updates of a lineage,
S_τ those that the backdoor survived before the ASR first fell below τ; every condition must be met on every seed unless it says otherwise.

- C1, a one-shot backdoor does not survive a few updates, with larger triggers and more poison neither: S_0.5 is at most T / 2.
- C2, poison must go on: without it the ASR falls below 50 % within T, with it it never does.
- C3, larger drift, faster forgetting: averaged over updates and seeds the ASR falls with every step of the drift.
- C4, a smart schedule forgets in one update: S_0.5 is 0, and the mean ACC at most a point below that of the constant rate which clean
  validation chooses (`counts` of survival.csv; for one scaled to a mean, of the constant rate of that mean).
- C5, updates wear the backdoor down: averaged over seeds, each lowers the trigger's score, by which it raises its class's logit. That only
  the sum of the rates matters is the linear model's part: the columns beside show how far it holds.

Command: python benchmarks/claims.py 'runs/evolution_c{}_fashion_mnist' (run folders with {} for the claim's number; absent ones are left out)
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from d3jax.evolution import survivability
from d3jax.rows import Row, read_csv
from d3jax.survival import ratio


class Lineages(NamedTuple):
    """One attack under one evolution, over the seeds: its line of survival.csv, and ASR, control and score by seed and update."""

    line: Row
    asr: list[list[float]]  # update 0 first
    control: list[list[float]]
    score: list[list[float]]

    @property
    def name(self) -> str:
        return self.line["evolution"]

    def survived(self, tau: float = 0.5) -> list[tuple[int, bool]]:
        """S_τ and whether it is censored, by seed."""
        return [survivability(one[1:], tau) for one in self.asr]

    def mean(self, update: int) -> float:
        """The ASR after an update, over seeds."""
        return statistics.fmean(one[update] for one in self.asr)


def read(folder: Path) -> dict[str, list[Lineages]]:
    """The lineages of a run folder by attack, those of clean models left out."""
    evolved, found = read_csv(folder / "evolution.csv"), {}
    for line in read_csv(folder / "survival.csv"):
        mine = [row for row in evolved if (row["attack"], row["evolution"]) == (line["attack"], line["evolution"])]
        seeds = [[row for row in mine if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in mine)]
        if mine[0]["asr"] is not None:
            curves = [
                [[row[name] for row in rows if row[name] is not None] for rows in seeds] for name in ("asr", "control", "score")
            ]
            found.setdefault(line["attack"], []).append(Lineages(line, *curves))
    return found


def forgotten(one: Lineages) -> bool:
    """C1's condition on a row."""
    return all(
        not censored and count <= len(curve[1:]) / 2 for (count, censored), curve in zip(one.survived(), one.asr, strict=True)
    )


def stays(one: Lineages) -> bool:
    """Whether the ASR never falls below a half, on any seed."""
    return all(censored for _, censored in one.survived())


def lost(one: Lineages) -> bool:
    """Whether the ASR falls below a half, on every seed."""
    return not any(censored for _, censored in one.survived())


def at_once(one: Lineages) -> bool:
    """C4's condition on a row."""
    return all(count == 0 for count, _ in one.survived()) and one.line["counts"] is True


def averaged(one: Lineages) -> float:
    """The ASR averaged over updates and seeds."""
    return statistics.fmean(statistics.fmean(curve[1:]) for curve in one.asr)


def worn(one: Lineages) -> bool:
    """C5's condition on a row."""
    means = [statistics.fmean(values) for values in zip(*one.score, strict=True)]
    return all(after < before for before, after in itertools.pairwise(means))


def each(condition: Callable[[Lineages], bool]) -> Callable[[Sequence[Lineages]], list[bool]]:
    """A verdict on the rows of one attack from one on a row."""
    return lambda rows: [condition(one) for one in rows]


def persisting(rows: Sequence[Lineages]) -> list[bool]:
    """C2 for the rows of one attack, of which the first is without further poison."""
    return [lost(rows[0]), *(stays(one) for one in rows[1:])]


def falling(rows: Sequence[Lineages]) -> list[bool]:
    """C3 for the rows of one attack, by growing drift: whether each has a lower ASR than the one before; the first has none to beat."""
    means = [averaged(one) for one in rows]
    return [True, *(after < before for before, after in itertools.pairwise(means))]


CLAIMS: dict[int, tuple[str, Callable[[Sequence[Lineages]], list[bool]]]] = {
    1: ("A one-shot backdoor is gone after half of the updates, with larger triggers and more poison too", each(forgotten)),
    2: ("Without further poison the backdoor falls below an ASR of 50 %, with it it stays above", persisting),
    3: ("The larger the drift, the lower the ASR", falling),
    4: ("A smart schedule takes the ASR below 50 % in one update, at no more than a point of ACC", each(at_once)),
    5: ("Every update lowers the trigger's score", each(worn)),
}


def shown(one: Lineages) -> dict[str, str]:
    """A row of a table, by the column's head, without its verdict."""
    line = one.line
    return {
        "attack": line["attack"], "evolution": one.name,
        "S_0.5 by seed": " ".join(f"≥{count}" if censored else str(count) for count, censored in one.survived()),
        "ASR after update 0, 1, …": ", ".join(f"{100 * one.mean(update):.0f}" for update in range(len(one.asr[0]))),
        "control at the end": f"{100 * statistics.fmean(curve[-1] for curve in one.control):.1f}" if all(one.control) else "–",
        "score left": f"{statistics.fmean(curve[-1] / curve[0] for curve in one.score):.2f}",
        "ACC": f"{100 * line['acc']:.1f}", "Σ rates of an update": f"{line['lr_mean'] * line['steps']:.2f}",
    }  # fmt: skip


def held_against(one: Lineages) -> dict[str, str]:
    """C4's further columns."""
    line = one.line
    chosen = line["baseline"] == one.name
    counts = {True: "yes", False: "no", None: "–"}[line["counts"]]
    return {
        "held against": "chosen" if chosen else str(line["baseline"]),
        "counts": counts,
        "speed-up": "–" if chosen else ratio(line),
    }


def verdict(said: Sequence[bool], rows: Sequence[Lineages], claim: int) -> str:
    """Holds, does not hold, or only where: of one attack's rows."""
    if claim == 4:
        smart = [one for one, true in zip(rows, said, strict=True) if true and not one.name.startswith("constant")]
        constant = [one for one, true in zip(rows, said, strict=True) if true and one.name.startswith("constant")]
        if not smart:
            return "does not hold"
        return "holds" + (f", but {', '.join(one.name for one in constant)} does it too" if constant else "")
    if all(said):
        return "holds"
    true = [one.name for one, holds in zip(rows, said, strict=True) if holds]
    return f"only for {', '.join(true)}" if true else "does not hold"


def tell(claim: int, found: dict[str, list[Lineages]]) -> str:
    """A claim's table in Markdown."""
    sentence, judge = CLAIMS[claim]
    lines, verdicts = [], []
    for attack, rows in found.items():
        said = judge(rows)
        for one, true in zip(rows, said, strict=True):
            lines.append(shown(one) | (held_against(one) if claim == 4 else {}) | {"so it is": "yes" if true else "no"})
        verdicts.append(f"{attack}: {verdict(said, rows, claim)}")
    head = list(lines[0])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *(line.values() for line in lines)])
    return f"**C{claim}. {sentence}.** {'; '.join(verdicts)}.\n\n{table}\n"


def main() -> None:
    """Prints the claims' tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", help="run folders, with {} for the claim's number")
    pattern = parser.parse_args().folders
    there = {claim: Path(pattern.format(claim)) for claim in CLAIMS}
    there = {claim: folder for claim, folder in there.items() if (folder / "survival.csv").is_file()}
    if not there:
        raise SystemExit(
            f"no survival.csv in {pattern} for any claim of 1 to {len(CLAIMS)}; run experiments/evolution_c1_….yaml first"
        )
    for claim, folder in there.items():
        print(tell(claim, read(folder)))


if __name__ == "__main__":
    main()
