"""A study that takes three seconds, and its tables without the columns that vary between runs."""

from __future__ import annotations

import csv
from pathlib import Path

from observed import SMALL, Observed, observe

STUDY = """
dataset: {name: synthetic, size: 8, classes: 3, train: 96, test: 30}
model: small
train: {steps: 40, batch_size: 16}
reserved: {count: 32}
detections: [spectral]
defenses:
  - {name: finetune, schedule: {steps: 20, batch_size: 16}}
  - {name: d3, schedule: {steps: 20, batch_size: 16}}
loop: {log_every: 2, save_every: 4, save_seconds: 0}
"""
TABLES = ("results.csv", "per_class.csv", "samples.csv")
VARYING = ("seconds", "commit")
"""Columns that differ between equal runs."""

Tables = dict[str, list[dict[str, str]]]
"""Rows by the name of their file."""


def run_small(base: Path, run: Path, **more: object) -> Observed:
    """Run the study in a run folder and return how it ended.

    `base` holds the study's config and cache. `more` is passed to `observe`.
    """
    return observe(words_of(base, run), environment={"D3JAX_CACHE": str(base / "cache")}, **more)


def words_of(base: Path, run: Path) -> list[str]:
    """Write the study's config to `base` and return the command line that runs it."""
    config = base / "study.yaml"
    config.write_text(STUDY)
    return [*SMALL, "--config", str(config), "--workdir", str(run)]


def tables_of(run: Path) -> Tables:
    """Return the tables that exist in a run folder, without the columns that vary."""
    found = {}
    for name in TABLES:
        path = run / name
        if path.is_file():
            with path.open(encoding="utf8") as file:
                rows = [dict(row) for row in csv.DictReader(file)]
            found[name] = [
                {key: value for key, value in row.items() if key not in VARYING} for row in rows
            ]
    return found
