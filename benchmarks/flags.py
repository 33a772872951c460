"""What the rule that flags a class says of inverted triggers that results hold, and what it said before.

Before: every norm counts, the spread has no floor. Now: a norm counts where its trigger turns half
of the images, and the spread is at least a tenth of the median (`d3jax.inversion.outliers`). The
intervals are Wilson's, of 95 %.

Command: python benchmarks/flags.py benchmarks/results/detection_{cifar10,fashion_mnist}.csv > benchmarks/results/flags.txt
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from d3jax.inversion.outliers import detect


def models_of(path: Path) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """Return the rows of classes by model: data set, attack, seed and detection."""
    models = defaultdict(list)
    with path.open(encoding="utf8") as file:
        for row in csv.DictReader(file):
            models[row["dataset"], row["attack"], row["seed"], row["detection"]].append(row)
    return models


def verdict(rows: list[dict[str, str]], now: bool) -> tuple[list[str], bool]:
    """Return the classes that are flagged, and whether that is right: the target, or none."""
    norms, success = (np.array([float(row[key]) for row in rows]) for key in ("norm", "success"))
    found = detect(norms, success) if now else detect(norms, None, floor=0.0)
    flagged = [row["class"] for row, one in zip(rows, found.flagged, strict=True) if one]
    wanted = [row["class"] for row in rows if row["is_target"] == "True"]
    return flagged, set(wanted) <= set(flagged) if wanted else not flagged


def main() -> None:
    """Print a line a model, and the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path)
    counts: dict[tuple[bool, bool], list[bool]] = defaultdict(list)
    print("No published number stands beside these.\n")
    for path in parser.parse_args().rows:
        for name, rows in models_of(path).items():
            attacked = any(row["is_target"] == "True" for row in rows)
            words = []
            for now in (False, True):
                flagged, right = verdict(rows, now)
                counts[attacked, now].append(right)
                words.append(f"{'now' if now else 'before'} {', '.join(flagged) or 'none'}")
            print(f"{' '.join(name)}: flagged {'; '.join(words)}")
    print()
    for attacked, what in ((True, "target flagged"), (False, "clean model not flagged")):
        for now in (False, True):
            right = counts[attacked, now]
            low, high = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
            when = "now" if now else "before"
            print(
                f"{what}, {when}: {sum(right)} of {len(right)} ({100 * low:.0f} to {100 * high:.0f} %)"
            )


if __name__ == "__main__":
    main()
