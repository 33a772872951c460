"""Compare training-time defences on one net, from the rows of many run folders.

    python benchmarks/claim.py add RUN… --to FOLDER
    python benchmarks/untrusted.py FOLDER

It prints a Markdown table for every attack. A line has the ACC and its change by the defence, the
ASR, the RA and the DER. It also has the number of suspects, their precision and their recall, and
the share of poison among the images that keep their labels. `minutes` is the wall time of the
defence with all its stages. A defence whose rule reads test data is marked `oracle`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tables import heading, markdown, mean

from d3jax.core.records import Row
from d3jax.results.tables import read_csv

HEAD = (
    "defence", "ACC", "change", "ASR", "RA", "DER", "suspects", "precision", "recall",
    "labelled poisoned", "minutes", "published",
)  # fmt: skip
RATES = ("asr", "ra", "der")
FOUND = ("suspects_poisoned", "poison_suspected", "labelled_poisoned")


def each_attack(rows: Sequence[Row], attack: str) -> str:
    """Return the table of an attack: means and standard deviations over seeds."""
    mine = [row for row in rows if row["attack"] == attack]
    before = {row["seed"]: row["acc"] for row in mine if row["defense"] == "none"}
    lines = [list(HEAD)]
    for name in dict.fromkeys(row["defense"] for row in mine):
        of = [row for row in mine if row["defense"] == name]
        label = name + " (oracle)" * any(row.get("rule") == "oracle" for row in of)
        if name == "none":
            change, rest = "", [""] * 5
        else:
            change = mean([row["acc"] - before[row["seed"]] for row in of if row["seed"] in before])
            suspects = mean([row.get("suspects") for row in of], 0, 1)
            found = [mean([row.get(column) for row in of]) for column in FOUND]
            rest = [suspects, *found, mean([row["seconds"] / 60 for row in of], 0, 1)]
        rates = [mean([row.get(column) for row in of]) for column in RATES]
        published = next((row["published"] for row in of if row.get("published")), "none")
        acc = mean([row["acc"] for row in of])
        lines.append([label, acc, change, *rates, *rest, published])
    return markdown(lines)


def report(folder: Path) -> str:
    """Return the tables of a folder in Markdown."""
    rows = read_csv(folder / "results.csv")
    parts = [heading(rows)]
    for attack in dict.fromkeys(row["attack"] for row in rows):
        parts += [f"## {attack}", each_attack(rows, attack)]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    print(report(parser.parse_args(argv).folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
