"""Print the tables of run folders in Markdown: means over seeds in percent.

Standard deviations are those of a sample. The first table comes from results.csv. It has a line
for every attack and defence, with ACC, its change by the defence, ASR, RA and DER. For
training-time defences it adds the share of poisoned images among the suspects, and among the
images that keep their labels. A mean over fewer seeds than the others is followed by their number.

The second table comes from filters.csv, if there is one. It shows how well the scores of a first
stage find the poisoned images. Defences with the same values for an attack share its lines, as
those with one first stage do. With --brief there is a line for every attack, a column for every
defence, and ACC/ASR alone.

Command: python benchmarks/tables.py [--brief] RUN…

RUN are folders with a results.csv. Several are merged; of a run that is in two of them the first
counts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from d3jax.results.artifacts import Row
from d3jax.results.tables import read_csv

SCORES = {
    "entropy": "entropy",
    "cross_entropy": "cross-entropy",
    "symmetric": "symmetric",
    "mixture": "mixture",
}
PRECISIONS = {"precision_0.01": "lowest 1 %", "precision_0.05": "5 %", "precision_0.1": "10 %"}


def gather(folders: Sequence[Path], name: str, key: Sequence[str]) -> list[Row]:
    """Return the rows of the table `name` in all folders, one for each value of `key`.

    The first folder that has a row counts. Rows of runs that failed are left out.
    """
    rows: dict[tuple, Row] = {}
    for folder in folders:
        if (folder / name).is_file():
            for row in read_csv(folder / name):
                if row.get("status", "ok") == "ok":
                    rows.setdefault(tuple(row[column] for column in key), row)
    return list(rows.values())


def mean(values: Sequence[float | None], digits: int = 1, factor: float = 100) -> str:
    """Return "mean±standard deviation" of the values, multiplied by `factor`.

    A single value has no deviation. Without values the text is empty.
    """
    known = [factor * value for value in values if value is not None]
    if not known:
        return ""
    spread = f"±{statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}".replace("-", "−")


def few(mine: Sequence[Row], seeds: int) -> str:
    """Return " (n of m seeds)" for a mean over fewer than all `seeds`, otherwise ""."""
    return f" ({len(mine)} of {seeds} seeds)" if 0 < len(mine) < seeds else ""


def outcomes(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line of headings, then a line for every attack and defence in order of `rows`."""
    seeds = len({row["seed"] for row in rows})
    before = {(row["attack"], row["seed"]): row["acc"] for row in rows if row["defense"] == "none"}
    asks = any(row.get("suspects") is not None for row in rows)
    lines = [
        [
            "attack",
            "defence",
            "ACC, change",
            "ASR",
            "RA",
            "DER",
            *["suspects poisoned", "labelled poisoned"] * asks,
            "published",
        ]
    ]
    for attack, defense in dict.fromkeys((row["attack"], row["defense"]) for row in rows):
        mine = [row for row in rows if (row["attack"], row["defense"]) == (attack, defense)]

        def column(name, mine=mine):
            return mean([row.get(name) for row in mine])

        acc = column("acc")
        if defense != "none":
            changes = [
                row["acc"] - before[attack, row["seed"]]
                for row in mine
                if (attack, row["seed"]) in before
            ]
            acc += (
                f", {'+' if statistics.mean(changes) > 0 else ''}{mean(changes).split('±')[0]}"
                if changes
                else ""
            )
        found = [column("suspects_poisoned"), column("labelled_poisoned")] if asks else []
        published = next((row["published"] for row in mine if row.get("published")), "none")
        lines.append(
            [
                attack,
                defense + few(mine, seeds),
                acc,
                *map(column, ("asr", "ra", "der")),
                *found,
                published,
            ]
        )
    return lines


def heading(rows: Sequence[Row]) -> str:
    """Return a sentence on the data set, the model and the seeds of the rows, and the units."""

    def values(name):
        return ", ".join(dict.fromkeys(str(row[name]) for row in rows))

    return (
        f"{values('dataset')}, {values('model')} ({values('net')}), seeds {values('seed')}. "
        "In percent, means ± standard deviations over seeds; `published` are other people's "
        "numbers, of nets and lengths of their own: see the experiment's YAML."
    )


FILTERS = (
    "How well low scores behind a first stage find the poison. "
    "What a defence suspects in the end may be other images: DLP's trials choose them."
)


def brief(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line of headings, then a line for every attack with ACC/ASR of every defence."""
    attacks, defenses = (
        list(dict.fromkeys(row[column] for row in rows)) for column in ("attack", "defense")
    )
    seeds = len({row["seed"] for row in rows})

    def cell(attack: str, defense: str) -> str:
        mine = [row for row in rows if (row["attack"], row["defense"]) == (attack, defense)]
        return " / ".join(
            mean([row[name] for row in mine]) or "–" for name in ("acc", "asr")
        ) + few(mine, seeds)

    return [
        ["attack", *defenses],
        *([attack, *(cell(attack, defense) for defense in defenses)] for attack in attacks),
    ]


def filters(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line of headings, then a line for every attack, first stage and score.

    Attacks without poisoned training images are left out.
    """
    lines = [
        [
            "attack",
            "first stage of",
            "score",
            "AUROC",
            *(f"poisoned of the {name}" for name in PRECISIONS.values()),
        ]
    ]
    poisoned = [row for row in rows if row["score"] in SCORES and row["auroc"] is not None]
    said: dict[tuple, list[str]] = {}  # block -> the defences that have it
    for attack, defense in dict.fromkeys((row["attack"], row["defense"]) for row in poisoned):
        block = []
        for score, name in SCORES.items():
            mine = [
                row
                for row in poisoned
                if (row["attack"], row["defense"], row["score"]) == (attack, defense, score)
            ]
            if mine:
                shares = (mean([row[column] for row in mine]) for column in PRECISIONS)
                block.append((name, mean([row["auroc"] for row in mine], 3, 1), *shares))
        said.setdefault((attack, *block), []).append(defense)
    for (attack, *block), defenses in said.items():
        who = defenses[0] + (f", {len(defenses) - 1} with the same" if len(defenses) > 1 else "")
        lines += [[attack, who, *line] for line in block]
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first of the lines holds the headings."""
    head, *body = lines
    return (
        "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)) + "\n"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders")
    parser.add_argument(
        "--brief", action="store_true", help="print only ACC/ASR, one line for every attack"
    )
    options = parser.parse_args()
    folders = options.folders
    rows = gather(folders, "results.csv", ("attack", "defense", "seed"))
    if not rows:
        raise SystemExit(
            f"no results.csv in {', '.join(map(str, folders))}; run an experiment with --workdir"
        )
    if options.brief:
        print(markdown(brief(rows)), end="")
        return
    print(f"{heading(rows)}\n\n{markdown(outcomes(rows))}")
    if scores := gather(folders, "filters.csv", ("attack", "defense", "seed", "score")):
        print(f"{FILTERS}\n\n{markdown(filters(scores))}", end="")


if __name__ == "__main__":
    main()
