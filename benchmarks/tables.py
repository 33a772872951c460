"""The tables of run folders in Markdown: means over seeds with standard deviations (of a sample), in percent.

Of results.csv every attack's defences with ACC, what they changed of it, ASR, RA, DER, and of training-time defences the share of the poisoned
among the suspects and among the images that keep their labels. Of filters.csv, where there is one, how well the scores behind a first stage
find the poison; defences that say the same of an attack share its lines, as those with one first stage do. With --brief ACC/ASR alone: a
line for every attack, a column for every defence. A mean of outcomes over fewer seeds than the others has their number behind it.

Command: python benchmarks/tables.py [--brief] RUN… (folders with a results.csv; several are put together, the first counts where two have
the same run)
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
    """The rows of `name` in all folders, one for each `key`; no row of a run that failed."""
    rows: dict[tuple, Row] = {}
    for folder in folders:
        if (folder / name).is_file():
            for row in read_csv(folder / name):
                if row.get("status", "ok") == "ok":
                    rows.setdefault(tuple(row[column] for column in key), row)
    return list(rows.values())


def mean(values: Sequence[float | None], digits: int = 1, factor: float = 100) -> str:
    """Mean and, of more than one, standard deviation; empty where there are none."""
    known = [factor * value for value in values if value is not None]
    if not known:
        return ""
    spread = f"±{statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}".replace("-", "−")


def few(mine: Sequence[Row], seeds: int) -> str:
    """What is said of a mean over fewer than all `seeds`."""
    return f" ({len(mine)} of {seeds} seeds)" if 0 < len(mine) < seeds else ""


def outcomes(rows: Sequence[Row]) -> list[list[str]]:
    """A line for every attack and defence, in the order of `rows`, behind one of headings."""
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
    """What the rows are of, in a sentence or two."""

    def values(name):
        return ", ".join(dict.fromkeys(str(row[name]) for row in rows))

    return (
        f"{values('dataset')}, {values('model')} ({values('net')}), seeds {values('seed')}. In percent, means ± standard deviations over seeds; "
        "`published` are other people's numbers, of nets and lengths of their own: see the experiment's YAML."
    )


FILTERS = """How well low scores behind a first stage find the poison. What a defence suspects in the end may be other images: DLP's trials choose them."""


def brief(rows: Sequence[Row]) -> list[list[str]]:
    """A line for every attack with ACC/ASR of every defence, behind one of headings."""
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
    """A line for every attack with poison, first stage and score, behind one of headings."""
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
    said: dict[tuple, list[str]] = {}  # the defences that say it
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
    """A table of lines of which the first has the headings."""
    head, *body = lines
    return (
        "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)) + "\n"
    )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders")
    parser.add_argument(
        "--brief", action="store_true", help="ACC/ASR alone, a line for every attack"
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
