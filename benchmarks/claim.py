"""Rank repairs by how well they remove backdoors, from the rows of many run folders.

    python benchmarks/claim.py add RUN… --to FOLDER
    python benchmarks/claim.py table FOLDER
    python benchmarks/claim.py times RUN

`add` copies rows of finished runs to FOLDER: those of results.csv, relearned.csv, filters.csv and
the tables of detectors. A row that FOLDER has stays. `table` prints Markdown tables:

- the rank: mean DER of every repair over the attacks, with a 95 % interval from resampled attacks.
  An attack counts if its backdoor works (ASR 90 % or more) and every repair of the rank has it. The
  last column is the mean difference to the first of the repairs named D3;
- every attack: ACC, ACC without the target, ASR, RA, DER and the ASR after relearning;
- what a repair costs a clean model.

`times` prints the wall time of each repair as a multiple of that of fine-tuning, from one run that
had the machine for itself.

A repair whose rule reads test data is marked `oracle`. It has no place in the rank.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tables import markdown, mean

from d3jax.core.records import Row
from d3jax.results.tables import read_csv, write_csv

WORKS = 0.9
"""The lowest ASR of a backdoor that works."""
RESAMPLES = 10_000
TABLES = {
    "results.csv": ("attack", "defense", "seed", "attack_seed"),
    "relearned.csv": ("attack", "defense", "seed"),
    "filters.csv": ("attack", "defense", "seed", "score"),
    "samples.csv": ("attack", "detection", "seed"),
    "inputs.csv": ("attack", "detection", "seed"),
    "detections.csv": ("attack", "detection", "seed"),
}
"""The tables that `add` copies, and the columns that identify a row."""


def add(runs: Sequence[Path], folder: Path) -> None:
    """Copy the rows of run folders to a folder, without rows of failed runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key in TABLES.items():
        rows: dict[tuple, Row] = {}
        for source in (folder, *runs):
            for row in read_csv(source / name) if (source / name).is_file() else []:
                if row.get("status", "ok") == "ok":
                    rows.setdefault(tuple(row[column] for column in key), row)
        if rows:
            found = sorted(rows.values(), key=lambda row: str(row["attack"]))
            shared = [column for column in found[0] if all(column in row for row in found)]
            write_csv(folder / name, found, shared)


class Measured:
    """The rows of a folder, by attack and repair.

    `attacks` are those whose backdoor works. `repairs` are in order of the rows.
    """

    def __init__(self, folder: Path) -> None:
        self.rows = read_csv(folder / "results.csv")
        relearned = folder / "relearned.csv"
        again = read_csv(relearned) if relearned.is_file() else []
        self.relearned = {(row["attack"], row["defense"], row["seed"]): row["asr"] for row in again}
        self.attacks = [
            attack
            for attack in dict.fromkeys(row["attack"] for row in self.rows)
            if any((row["asr"] or 0) >= WORKS for row in self.of(attack, "none"))
        ]
        found = dict.fromkeys(row["defense"] for row in self.rows)
        self.repairs = [name for name in found if name != "none"]

    def of(self, attack: str, repair: str) -> list[Row]:
        """Return the rows of an attack and a repair, one for each draw of the reserved images."""
        return [row for row in self.rows if (row["attack"], row["defense"]) == (attack, repair)]

    def der(self, repair: str) -> dict[str, float]:
        """Return the mean DER of a repair under each attack that works and that it was run on."""
        found = {attack: [row["der"] for row in self.of(attack, repair)] for attack in self.attacks}
        return {attack: statistics.fmean(values) for attack, values in found.items() if values}

    def oracle(self, repair: str) -> bool:
        """Return whether a repair's rule reads test data."""
        return any(row["defense"] == repair and row.get("rule") == "oracle" for row in self.rows)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of the mean of resampled values (the bootstrap)."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.percentile(drawn.mean(1), [2.5, 97.5])
    return float(low), float(high)


def with_interval(values: Sequence[float]) -> str:
    """Return "mean (low to high)" in percent; the mean alone for a single value."""
    middle = mean([statistics.fmean(values)])
    if len(values) == 1:
        return middle
    return f"{middle} ({' to '.join(mean([bound]) for bound in interval(values))})"


def rank(measured: Measured) -> str:
    """Return the table of repairs by mean DER over the attacks that all of them were run on."""
    honest = {name: measured.der(name) for name in measured.repairs if not measured.oracle(name)}
    most = max(map(len, honest.values()), default=0)
    whole = {name: found for name, found in honest.items() if len(found) == most}
    shared = [a for a in measured.attacks if all(a in found for found in whole.values())]
    if not shared:
        return "No attack has rows of every repair."
    reference = next((name for name in whole if name.startswith("d3")), None)
    head = ["repair", "mean DER", "lowest DER", "mean RA", "mean ASR"]
    lines = [[*head, f"DER less {reference}'s"] if reference else head]
    for name in sorted(whole, key=lambda one: -statistics.fmean(whole[one][a] for a in shared)):
        values = [whole[name][attack] for attack in shared]
        rows = [row for attack in shared for row in measured.of(attack, name)]
        rates = (mean([statistics.fmean(row[key] for row in rows)]) for key in ("ra", "asr"))
        apart = [whole[name][a] - whole[reference][a] for a in shared] if reference else []
        last = [with_interval(apart) if name != reference else "–"] if reference else []
        lines.append([name, with_interval(values), mean([min(values)]), *rates, *last])
    rest = [name for name in honest if name not in whole]
    left_out = f"\nRun on fewer attacks: {', '.join(rest)}.\n" if rest else ""
    return f"Over {', '.join(shared)}.\n\n{markdown(lines)}{left_out}"


def each_attack(measured: Measured, attack: str) -> str:
    """Return the table of an attack: means and standard deviations over draws, in percent."""
    lines = [["repair", "draws", "ACC", "ACC without target", "ASR", "RA", "DER", "relearned ASR"]]
    for repair in ("none", *measured.repairs):
        rows = measured.of(attack, repair)
        if not rows:
            continue
        again = [measured.relearned.get((attack, repair, row["seed"])) for row in rows]
        columns = ("acc", "acc_non_target", "asr", "ra", "der")
        cells = [mean([row.get(name) for row in rows]) for name in columns]
        label = repair + " (oracle)" * measured.oracle(repair)
        lines.append([label, str(len(rows)), *cells, mean(again)])
    return markdown(lines)


def clean_cost(measured: Measured) -> str:
    """Return the table of ACC of clean models before and after every repair."""
    lines = [["repair", "draws", "ACC", "change"]]
    (before,) = {row["acc"] for row in measured.of("clean", "none")}
    for repair in measured.repairs:
        rows = measured.of("clean", repair)
        if rows:
            change = mean([row["acc"] - before for row in rows])
            lines.append([repair, str(len(rows)), mean([row["acc"] for row in rows]), change])
    return f"ACC before the repair: {mean([before])}.\n\n{markdown(lines)}"


def wall_times(run: Path) -> str:
    """Return the table of each repair's seconds in a run, and their multiple of fine-tuning's."""
    rows = [row for row in read_csv(run / "results.csv") if row["status"] == "ok"]
    seconds = {row["defense"]: row["seconds"] for row in rows if row["defense"] != "none"}
    if "finetune" not in seconds:
        sys.exit(f"{run} has no finished row of finetune; repairs there: {', '.join(seconds)}")
    lines = [["repair", "seconds", "× fine-tuning"]]
    for repair in sorted(seconds, key=lambda one: seconds[one]):
        multiple = seconds[repair] / seconds["finetune"]
        lines.append([repair, f"{seconds[repair]:.0f}", f"{multiple:.2f}"])
    return markdown(lines)


def report(folder: Path) -> str:
    """Return all tables of a folder in Markdown."""
    measured = Measured(folder)
    (net,) = {f"{row['dataset']}, {row['model']} ({row['net']})" for row in measured.rows}
    parts = [f"{net}. In percent.", "## Rank", rank(measured)]
    for attack in dict.fromkeys(row["attack"] for row in measured.rows):
        if attack != "clean":
            weak = "" if attack in measured.attacks else " (the backdoor is weak: not ranked)"
            parts += [f"## {attack}{weak}", each_attack(measured, attack)]
    if measured.of("clean", "none"):
        parts += ["## Clean model", clean_cost(measured)]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Add rows or print tables; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add")
    adding.add_argument("runs", nargs="+", type=Path)
    adding.add_argument("--to", required=True, type=Path)
    commands.add_parser("table").add_argument("folder", type=Path)
    commands.add_parser("times").add_argument("run", type=Path)
    options = parser.parse_args(argv)
    if options.command == "add":
        add(options.runs, options.to)
    elif options.command == "times":
        print(wall_times(options.run))
    else:
        print(report(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
