"""How the first stages of ABL and DLP learn clean and poisoned images, and what DLP's later stages do to accuracy, as Markdown.

From metrics.jsonl, of lines with what was watched of at most 1,000 training images of a kind and 1,000 test images. A first stage: after which
watch (once an epoch) 90 % of the poisoned training images were taken for their given label for the first time, and behind the last the
share of both kinds and the mean entropies. DLP with all three stages: the share of test images right behind stage 2 and in the end.

Command: python benchmarks/learning.py RUN… (folders with a metrics.jsonl; several are put together)
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tables import markdown

Runs = dict[tuple[str, int], list[dict[str, Any]]]
"""The records of one attack by (what ran, seed), by rising step."""

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


def read_metrics(path: Path) -> dict[str, Runs]:
    """Return the records of a metrics.jsonl of the earlier layout by attack.

    A stage is called "<attack>/seed<n>/<what>". Lines that are no records of one are skipped, and
    of a step logged twice the later record counts.
    """
    stages: dict[str, dict[tuple[str, int], dict[float, dict[str, Any]]]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if stage := re.fullmatch(r"(.+?)/seed(\d+)/(.+)", str(record.get("stage"))):
            attack, seed, what = stage.groups()
            stages.setdefault(attack, {}).setdefault((what, int(seed)), {})[record["step"]] = record
    return {
        attack: {run: [steps[step] for step in sorted(steps)] for run, steps in runs.items()}
        for attack, runs in stages.items()
    }


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f}"


def first_stages(attack: str, runs: Runs) -> list[list[str]]:
    """A line for every first stage in which poisoned images were watched."""
    lines = []
    for (name, seed), records in runs.items():
        watched = [record for record in records if "poisoned_right" in record]
        if not name.startswith("beginning-") or not watched:
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
    """A line for every defence that goes on from labelled and unlabelled images together, behind something else that was watched."""
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
    """Prints the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders")
    first, later = list(FIRST), list(LATER)
    for folder in parser.parse_args().folders:
        for attack, runs in read_metrics(folder / "metrics.jsonl").items():
            first += first_stages(attack, runs)
            later += later_stages(attack, runs)
    if len(first) + len(later) == 2:
        raise SystemExit(
            "no first stage and no stage 3 was watched in a metrics.jsonl of these folders"
        )
    print(f"{markdown(first)}\n{markdown(later)}", end="")


if __name__ == "__main__":
    main()
