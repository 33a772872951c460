"""A study of three seconds that is disturbed, and its tables without what differs from run to run."""

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
"""Columns that differ from run to run."""

Tables = dict[str, list[dict[str, str]]]
"""Rows by the file's name."""


def run_small(base: Path, run: Path, **more: object) -> Observed:
    """Run the study in a run folder; `base` holds its config and its cache, `more` is for `observe`."""
    return observe(words_of(base, run), environment={"D3JAX_CACHE": str(base / "cache")}, **more)


def words_of(base: Path, run: Path) -> list[str]:
    """Return the study's command line; its config is written."""
    config = base / "study.yaml"
    config.write_text(STUDY)
    return [*SMALL, "--config", str(config), "--workdir", str(run)]


def tables_of(run: Path) -> Tables:
    """Return the tables of a run folder that are there."""
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
