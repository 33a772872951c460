"""Print how first stages of ABL and DLP learn, and how DLP's later stages change accuracy.

The Markdown tables come from log records, in which at most 1,000 training images of each kind and
1,000 test images were watched once an epoch. For a first stage the table has the first watch at
which over 90 % of the poisoned training images were predicted as their given label. It also has
the share of poisoned and clean images so predicted at the last watch, and the mean entropies. For
DLP with all three stages it has the share of test images predicted correctly after stage 2 and at
the end.

Command: python benchmarks/learning.py RUN…

RUN are run folders, or folders in benchmarks/results. Several are merged.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tables import markdown

Runs = dict[tuple[str, int], list[dict[str, Any]]]
"""Log records by the name of the train loop that logged them and its seed."""

FIRST = [
    [
        "attack",
        "seed",
        "watches until 90 % poisoned",
        "poisoned right",
        "clean right",
        "entropy of the poisoned",
        "of the clean",
    ]
]
LATER = [["attack", "seed", "defence", "ACC behind stage 2", "in the end", "change"]]
FIRST_STAGES = ("first_stage-", "beginning-")
"""Prefixes of the names of first stages, in today's run folders and in earlier ones.

Earlier run folders have a single metrics.jsonl.
"""


def read_metrics(folder: Path) -> dict[str, Runs]:
    """Return the log records of a run folder by attack, in order of steps; {} without any.

    Lines that are not records are skipped, because a killed run leaves half a line. A resumed run
    may log a step twice; the later record counts.
    """
    found: dict[str, dict[tuple[str, int], dict[float, dict[str, Any]]]] = {}
    for name, record in _records(folder):
        if parts := re.fullmatch(r"(.+?)/seed(\d+)/(.+)", name):
            attack, seed, what = parts.groups()
            run = found.setdefault(attack, {}).setdefault((what, int(seed)), {})
            run[record["step"]] = record
    return {
        attack: {key: [run[step] for step in sorted(run)] for key, run in runs.items()}
        for attack, runs in found.items()
    }


def _records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each log record with its name `<attack>/seed<n>/<what>`.

    Records come from nodes/, and from the single file of earlier run folders.
    """
    nodes = folder / "nodes"
    for path in [folder / "metrics.jsonl", *sorted(nodes.rglob("metrics.jsonl"))]:
        text = path.read_text(encoding="utf8", errors="replace") if path.exists() else ""
        node = path.parent.relative_to(nodes).as_posix() if path.parent != folder else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int | float):
                loop = record.get("loop")
                name = f"{node}/{loop}" if loop else node
                yield name or str(record.get("stage")), record


def percent(share: float) -> str:
    """Return a share in percent, with one decimal."""
    return f"{100 * share:.1f}"


def first_stages(attack: str, runs: Runs) -> list[list[str]]:
    """Return a line for every first stage in which poisoned images were watched."""
    lines = []
    for (name, seed), records in runs.items():
        watched = [record for record in records if "poisoned_right" in record]
        if not name.startswith(FIRST_STAGES) or not watched:
            continue
        early = [
            number for number, record in enumerate(watched, 1) if record["poisoned_right"] > 0.9
        ]
        last = watched[-1]
        shares = (percent(last[f"{kind}_right"]) for kind in ("poisoned", "clean"))
        entropies = (f"{last[f'{kind}_entropy']:.2f}" for kind in ("poisoned", "clean"))
        lines.append([attack, str(seed), str(early[0]) if early else "never", *shares, *entropies])
    return lines


def later_stages(attack: str, runs: Runs) -> list[list[str]]:
    """Return a line for every defence that ends with semi-supervised training.

    The accuracy must have been watched both before and during that stage.
    """
    lines = []
    for (name, seed), records in runs.items():
        watched = [record for record in records if "watch_acc" in record]
        before, behind = (
            [record for record in watched if ("unlabelled_loss" in record) is semi]
            for semi in (False, True)
        )
        if before and behind:
            accs = before[-1]["watch_acc"], behind[-1]["watch_acc"]
            lines.append(
                [
                    attack,
                    str(seed),
                    name,
                    *map(percent, accs),
                    f"{100 * (accs[1] - accs[0]):+.1f}".replace("-", "−"),
                ]
            )
    return lines


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders")
    first, later = list(FIRST), list(LATER)
    for folder in parser.parse_args().folders:
        for attack, runs in read_metrics(folder).items():
            first += first_stages(attack, runs)
            later += later_stages(attack, runs)
    if len(first) + len(later) == 2:
        raise SystemExit(
            "no first stage and no stage 3 was watched in the metrics.jsonl of these folders"
        )
    print(f"{markdown(first)}\n{markdown(later)}", end="")


if __name__ == "__main__":
    main()
