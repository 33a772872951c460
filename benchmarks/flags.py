"""Compare the rule that flags a class with its earlier form, on inverted triggers in results.

The earlier rule counts every norm, and its spread has no floor. Today's rule counts a norm if its
trigger changes the prediction of at least half of the images. Its spread is at least a tenth of
the median (`d3jax.inversion.outliers`). The intervals are Wilson's, at 95 %.

Command, whose output is benchmarks/results/flags.txt:
    cd benchmarks/results
    python ../flags.py detection_{cifar10,fashion_mnist,search_fashion_mnist}.csv
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
    """Return the rows of a model's classes by data set, attack, seed and detection."""
    models = defaultdict(list)
    with path.open(encoding="utf8") as file:
        for row in csv.DictReader(file):
            models[row["dataset"], row["attack"], row["seed"], row["detection"]].append(row)
    return models


def verdict(rows: list[dict[str, str]], now: bool) -> tuple[list[str], bool]:
    """Return the flagged classes and whether they are right.

    They are right if the target class is among them, or on a clean model if there are none. `now`
    chooses today's rule or the earlier one.
    """
    norms, success = (np.array([float(row[key]) for row in rows]) for key in ("norm", "success"))
    found = detect(norms, success) if now else detect(norms, None, floor=0.0)
    flagged = [row["class"] for row, one in zip(rows, found.flagged, strict=True) if one]
    wanted = [row["class"] for row in rows if row["is_target"] == "True"]
    return flagged, set(wanted) <= set(flagged) if wanted else not flagged


def main() -> None:
    """Print a line a model, and for each search the shares of right verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path)
    counts: dict[tuple[str, bool, bool], list[bool]] = defaultdict(list)
    print("No published number stands beside these.\n")
    for path in parser.parse_args().rows:
        for name, rows in models_of(path).items():
            attacked = any(row["is_target"] == "True" for row in rows)
            words = []
            for now in (False, True):
                flagged, right = verdict(rows, now)
                counts[name[-1], attacked, now].append(right)
                words.append(f"{'now' if now else 'before'} {', '.join(flagged) or 'none'}")
            print(f"{' '.join(name)}: flagged {'; '.join(words)}")
    for search in dict.fromkeys(name for name, _, _ in counts):
        print(f"\n{search}")
        for attacked, what in ((True, "target flagged"), (False, "clean model not flagged")):
            for now in (False, True):
                right = counts[search, attacked, now]
                if not right:
                    continue
                low, high = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
                when = "now" if now else "before"
                share = f"{sum(right)} of {len(right)} ({100 * low:.0f} to {100 * high:.0f} %)"
                print(f"{what}, {when}: {share}")


if __name__ == "__main__":
    main()
