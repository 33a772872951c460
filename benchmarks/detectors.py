"""Print how well detectors find poisoned samples, triggered inputs and backdoored models.

    python benchmarks/detectors.py RUN…

RUN are folders with samples.csv, inputs.csv, detections.csv and results.csv, as a study writes
them. The tables are in Markdown. AUROC is a mean ± sample standard deviation over seeds. The rates
are in percent. A model detection counts the seeds on which it flags the attacker's class and
nothing else. On a clean model it counts those on which it flags nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d3jax.core.records import Row
from d3jax.results.summary import mean_spread
from d3jax.results.tables import read_csv

RATES = {
    "auroc": ("AUROC", 1, 3),
    "tpr_1": ("TPR at 1 % FPR", 100, 1),
    "tpr_5": ("TPR at 5 % FPR", 100, 1),
    "precision": ("precision", 100, 1),
    "recall": ("recall", 100, 1),
    "fpr": ("FPR", 100, 1),
}


def rows_of(folders: Sequence[Path], name: str) -> list[Row]:
    """Return the rows of a table in all folders that have it."""
    return [
        row for folder in folders if (folder / name).is_file() for row in read_csv(folder / name)
    ]


def groups(rows: Sequence[Row], *columns: str) -> dict[tuple, list[Row]]:
    """Return the rows grouped by the values of columns, in order of appearance."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with a line of headings."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def victims(rows: Sequence[Row]) -> str:
    """Return a table of the ACC and ASR of every attack's models without defence."""
    body = [
        [attack, *(mean_spread([row[rate] for row in found], 100, 1) for rate in ("acc", "asr"))]
        for (attack,), found in groups(
            [r for r in rows if r["defense"] == "none"], "attack"
        ).items()
    ]
    return table(["attack", "ACC", "ASR"], body)


def scores(rows: Sequence[Row]) -> str:
    """Return a table of the rates of every detector under every attack."""
    body = [
        [
            attack,
            detection,
            *(
                mean_spread([row[rate] for row in found], *form)
                for rate, (_, *form) in RATES.items()
            ),
        ]
        for (attack, detection), found in groups(rows, "attack", "detection").items()
    ]
    return table(["attack", "detector", *(title for title, *_ in RATES.values())], body)


def verdicts(rows: Sequence[Row]) -> str:
    """Return a table of how often every model detector is right, and flags a class."""
    body = [
        [
            attack,
            detection,
            f"{sum(bool(row['right']) for row in found)} of {len(found)}",
            f"{sum(bool(row['flagged']) for row in found)} of {len(found)}",
            mean_spread([row["statistic"] for row in found], 1, 2),
            f"{found[0]['threshold']:g}",
        ]
        for (attack, detection), found in groups(rows, "attack", "detection").items()
    ]
    return table(["attack", "detector", "right", "flags a class", "statistic", "threshold"], body)


def main() -> None:
    """Print the tables of run folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    folders = parser.parse_args().runs
    results = rows_of(folders, "results.csv")
    seeds = sorted({row["seed"] for row in results})
    where = dict.fromkeys((row["dataset"], row["model"], row["net"]) for row in results)
    named = "; ".join(f"{data}, {model} ({net})" for data, model, net in where)
    print(f"{named}, seeds {', '.join(map(str, seeds))}. Published numbers for these nets: none.\n")
    print(f"## The models\n\n{victims(results)}\n")
    for title, name, show in (
        ("Poisoned training samples", "samples.csv", scores),
        ("Triggered test inputs", "inputs.csv", scores),
        ("Backdoored models", "detections.csv", verdicts),
    ):
        if rows := rows_of(folders, name):
            print(f"## {title}\n\n{show(rows)}\n")


if __name__ == "__main__":
    main()
