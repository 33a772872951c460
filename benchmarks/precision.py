"""Compare studies in bfloat16 with the same studies in float32, paired by seed.

    python benchmarks/precision.py run CONFIG --work FOLDER [SETTING VALUE …]
    python benchmarks/precision.py table FOLDER…

`run` runs the study of CONFIG once in each precision, in FOLDER/float32 and FOLDER/bfloat16.
`table` prints ACC, ASR and RA in both, the mean difference over seeds with its extremes, and
whether an ASR changes sides of 50 %. Nothing is compared with published numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tables import markdown

from d3jax.core.records import Row
from d3jax.results.tables import read_csv
from d3jax.run import main as run_main

PRECISIONS = ("float32", "bfloat16")
RATES = ("acc", "asr", "ra")


def run(config: Path, work: Path, settings: Sequence[str]) -> None:
    """Run the study in both precisions."""
    for precision in PRECISIONS:
        words = ["--config", str(config), "--workdir", str(work / precision)]
        code = run_main([*words, "--precision", precision, *settings])
        if code:
            raise SystemExit(code)


def paired(folder: Path) -> dict[tuple[str, str, str], list[tuple[Row, Row]]]:
    """Return the rows of both precisions by (net, attack, defence), paired by seed."""
    found: dict[str, dict[tuple, Row]] = {}
    for precision in PRECISIONS:
        rows = read_csv(folder / precision / "results.csv")
        found[precision] = {
            (f"{row['model']} {row['net']}", row["attack"], row["defense"], row["seed"]): row
            for row in rows
        }
    pairs: dict[tuple[str, str, str], list[tuple[Row, Row]]] = {}
    for key, row in found[PRECISIONS[0]].items():
        if key in found[PRECISIONS[1]]:
            pairs.setdefault(key[:3], []).append((row, found[PRECISIONS[1]][key]))
    return pairs


def lines_of(folder: Path) -> list[list[str]]:
    """Return a line of the table for each net, attack, defence and rate."""
    lines = []
    for (net, attack, defence), pairs in paired(folder).items():
        for rate in RATES:
            values = np.array([[float(row[rate]) for row in pair] for pair in pairs]) * 100
            differences = values[:, 1] - values[:, 0]
            means = [f"{mean:.1f}" for mean in values.mean(0)]
            spread = (
                f"{differences.mean():+.1f} ({differences.min():+.1f} to {differences.max():+.1f})"
            )
            sides = np.any((values[:, 0] > 50) != (values[:, 1] > 50)) if rate == "asr" else None
            shown = "" if sides is None else ("yes" if sides else "no")
            where = [net, attack, defence, rate.upper(), str(len(pairs))]
            lines.append([*where, *means, spread, shown])
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the studies, or print the table."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("config", type=Path)
    running.add_argument("--work", type=Path, required=True)
    commands.add_parser("table").add_argument("folders", type=Path, nargs="+")
    options, settings = parser.parse_known_args(given)
    if options.command == "run":
        run(options.config, options.work, settings)
        return
    lines = [line for folder in options.folders for line in lines_of(folder)]
    columns = ["net", "attack", "defence", "rate", "seeds", *PRECISIONS]
    columns += ["bfloat16 − float32: mean (least to most)", "changes sides"]
    print("No published number stands beside these. Rates in %.\n")
    print(markdown([columns, *lines]))


if __name__ == "__main__":
    main()
