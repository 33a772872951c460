"""Helpers that write run folders with given rows, manifests and records, without a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from d3jax.results.artifacts import (
    AttackEntry,
    EvolutionEntry,
    Manifest,
    NodeEntry,
    NodeRecord,
    Row,
    write_manifest,
    write_record,
)
from d3jax.results.tables import NUMBERS

IDENTITY = {
    "dataset": "cifar10",
    "model": "preact_resnet18",
    "net": "width=64",
    "classes": 10,
    "attack": "badnets",
    "poison_rate": 0.1,
    "defense": "none",
    "seed": 0,
    "attack_seed": 0,
    "published": "none",
}


def result_row(**values: Any) -> Row:
    """Return a row of results.csv: IDENTITY and plausible numbers, overridden by `values`."""
    numbers = {"acc": 0.9, "asr": 1.0, "ra": 0.1, "der": None, "n_clean": 1000, "n_triggered": 900}
    seed = values.get("seed", 0)
    return (
        IDENTITY
        | {"attack_seed": seed}
        | numbers
        | {"seconds": 2.5, "commit": "abc", "status": "ok"}
        | values
    )


def node_of(row: Row, kind: str = "") -> tuple[NodeEntry, NodeRecord | None]:
    """Return the manifest entry and the record of the node that produces a row.

    The record is None if the row's status begins with "not finished".
    """
    defense = row["defense"]
    kind = kind or ("victim" if defense == "none" else "repair")
    role = {"repair": "defense", "model_detection": "detection"}.get(kind, kind)
    known = {name: row[name] for name in IDENTITY}
    name = f"{row['attack']}/seed{row['seed']}/{defense}"
    entry = NodeEntry(name, kind, row["attack"], row["seed"], defense, role, [known], "r")
    if row["status"].startswith("not finished"):
        return entry, None
    tables = {"results": [row]} if row["status"] == "ok" else {}
    return entry, NodeRecord(name, "r", row["status"], tables, {})


def write_run(
    folder: Path,
    rows: Iterable[Row],
    config: dict[str, Any] | None = None,
    more: Iterable[tuple[NodeEntry, NodeRecord | None]] = (),
    evolutions: Iterable[str] = (),
) -> Path:
    """Write a run folder with a node for each row and return its path.

    `config` are settings of its config.yaml, `more` are further nodes, and `evolutions` are the
    labels of rows that evolution runs produce.
    """
    rows, evolutions = list(rows), set(evolutions)
    nodes = [node_of(row, "evolution" if row["defense"] in evolutions else "") for row in rows]
    nodes += list(more)
    attacks = [
        AttackEntry(name, True, [0]) for name in dict.fromkeys(row["attack"] for row in rows)
    ]
    first = rows[0] if rows else IDENTITY
    seeds = sorted({row["seed"] for row in rows})
    manifest = Manifest(
        first["dataset"],
        [str(i) for i in range(first["classes"])],
        first["model"],
        seeds,
        "",
        attacks,
        [EvolutionEntry(label, "g", True, False, [0.1, 0.1]) for label in sorted(evolutions)],
        [entry for entry, _ in nodes],
    )
    write_manifest(folder, manifest)
    for _, record in nodes:
        if record:
            write_record(folder, record)
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"steps": 100}} | (config or {})))
    return folder


def without_numbers(row: Row, status: str) -> Row:
    """Return a row of a failed or unfinished run: its numbers are None, and it has `status`."""
    return row | dict.fromkeys(NUMBERS) | {"status": status}
