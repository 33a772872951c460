"""The files of a run folder: their types, and functions that write and read them. No jax.

    RUN/
      study.json              Manifest: data set, net, attacks, every node in order
      config.yaml             the settings in full
      environment.json        versions, commit, devices
      nodes/<node's name>/    one folder for each finished or failed node
          record.json         NodeRecord: status, rows of tables, facts, checksum of the arrays
          metrics.jsonl       one log record a line
          arrays.npz          arrays that the page shows, by the names in `node_arrays`
          failed.json         error and traceback, if an analysis failed
      checkpoints/            models; shared ones are in the cache instead, if there is one
      *.csv, report.html, figures/    made from the above (`python -m d3jax.report RUN`)

A node's name is `<attack>/seed<n>/<what>`. Tables and page depend on these files only.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import DataError
from ..core.paths import user_path
from ..core.records import LogRecord, Row
from ..runtime.files import read_json, read_sealed, read_text, remove, write_bytes, write_sealed
from .log_records import parse_log

FORMAT = 2
"""The version of the run folder's layout."""


class AttackEntry(NamedTuple):
    """An entry of study.json: an attack's label, whether it has a trigger, and target classes."""

    label: str
    attacked: bool
    targets: list[int]


class NodeEntry(NamedTuple):
    """An entry of study.json: one planned node of a study, finished or not.

    `kind` is the class of node, and `attack` and `seed` are the attack run it belongs to. `label`
    is the name of its model ("none" for the victim) or detection in tables and figures, or "".
    `role` says which rows of results.csv it provides: the model of a "victim", a "defense" or an
    "evolution", a "detection" that failed, or none (""). `rows` are the identifying columns of
    those rows, one for each seed that shares the node. `recipe` is the hash of everything that
    determines the node; a record with another hash is outdated.
    """

    name: str
    kind: str
    attack: str
    seed: int
    label: str
    role: str
    rows: list[Row]
    recipe: str


class EvolutionEntry(NamedTuple):
    """An entry of study.json: one evolution of the config, with its learning rates.

    `rates` are the learning rates of every step of an update. `group` is equal for evolutions that
    differ in their rates only. `constant` says whether the rates are constant, and `scaled` whether
    they were scaled to a given mean.
    """

    label: str
    group: str
    constant: bool
    scaled: bool
    rates: list[float]


class Manifest(NamedTuple):
    """The contents of study.json: the data, attacks, evolutions and planned nodes of a study.

    `external` is a text on how an external model was read ("" without one).
    """

    dataset: str
    classes: list[str]
    model: str
    seeds: list[int]
    external: str
    attacks: list[AttackEntry]
    evolutions: list[EvolutionEntry]
    nodes: list[NodeEntry]

    def labels(self, role: str) -> set[str]:
        """Return the labels of the study's nodes that have a role, such as "evolution"."""
        return {node.label for node in self.nodes if node.role == role}


class NodeRecord(NamedTuple):
    """The record of a node in record.json: its status, its rows by table, and its facts.

    `status` is "ok" or "failed: …". `facts` are JSON values by name. `recipe` is the hash of
    everything that determined the record.
    """

    name: str
    recipe: str
    status: str
    tables: dict[str, list[Row]]
    facts: dict[str, Any]


class Finished(NamedTuple):
    """A finished node read from a run folder: its `entry`, `record`, and `arrays` for the page."""

    entry: NodeEntry
    record: NodeRecord
    arrays: dict[str, np.ndarray]


class RunFolder:
    """A reader of a run folder: its manifest, and the records, arrays and logs of its nodes.

    Raises `DataError` if `path` is not a run folder, or has another layout.
    """

    def __init__(self, path: str | Path):
        self.path = user_path(path)
        self.manifest = read_manifest(self.path)
        self._recipes = {entry.name: entry.recipe for entry in self.manifest.nodes}

    def record(self, name: str) -> NodeRecord | None:
        """Return the record of a node in a run folder; None if missing, outdated or damaged."""
        record = read_record(self.path, name)
        return record if record and record.recipe == self._recipes.get(name) else None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays that a node saved for the report page, by name; {} if it has none."""
        path = self._of(name) / "arrays.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)

    def metrics(self, name: str) -> list[LogRecord]:
        """Return a node's log records from metrics.jsonl; skip damaged lines with a warning."""
        path = self._of(name) / "metrics.jsonl"
        records, damaged = parse_log(read_text(path))
        if damaged:
            skipped = f"{damaged} line{'s' * (damaged > 1)} skipped"
            warnings.warn(f"{path}: {skipped}: not a valid log record", stacklevel=2)
        return records

    def finished(self, kind: str, attack: str | None = None) -> Iterator[Finished]:
        """Yield the finished nodes of one kind in a run folder, in the study's order."""
        for entry in self.manifest.nodes:
            if entry.kind == kind and attack in (None, entry.attack):
                record = self.record(entry.name)
                if record and record.status == "ok":
                    yield Finished(entry, record, self.arrays(entry.name))

    def text(self, name: str) -> str:
        """Return the text of a file of the run folder, such as config.yaml; "" if missing."""
        return read_text(self.path / name)

    def environment(self) -> dict[str, Any]:
        """Return the contents of a run folder's environment.json; {} if missing or damaged."""
        found = read_json(self.path / "environment.json")
        return found if isinstance(found, dict) else {}

    def _of(self, name: str) -> Path:
        return node_folder(self.path, name)


def node_folder(run: Path, name: str) -> Path:
    """Return the folder in a run folder that holds the files of a node: `nodes/<name>`."""
    return run / "nodes" / name


ENTRIES = {"attacks": AttackEntry, "evolutions": EvolutionEntry, "nodes": NodeEntry}
"""The lists of a manifest, and the type of their entries."""


def read_manifest(run: Path) -> Manifest:
    """Read the `Manifest` of a study from study.json in its run folder.

    Raises `DataError` if `run` is not a run folder, has another layout, or its study.json is
    damaged.
    """
    path = run / "study.json"
    if not path.is_file():
        written = (
            " (it was written by an earlier d3jax: run its config again)"
            if (run / "metrics.jsonl").exists()
            else ""
        )
        raise DataError(f"{run}: not a run folder of d3jax, it has no study.json{written}")
    anything, found = read_json(path), read_sealed(path)
    version = anything.get("format") if isinstance(anything, dict) else None
    if isinstance(version, int) and version != FORMAT:
        other = f"layout {version}, this d3jax reads {FORMAT}"
        raise DataError(f"{path}: {other}; run the study's config again")
    if found is None:
        damaged = "it is damaged, or was changed by hand"
        raise DataError(f"{path}: {damaged}; run the study again to write a new one")
    del found["format"]
    lists: dict[str, Any] = {
        name: [entry(**given) for given in found.pop(name)] for name, entry in ENTRIES.items()
    }
    return Manifest(**found, **lists)


def write_manifest(run: Path, manifest: Manifest) -> None:
    """Write the manifest of a study to study.json in its run folder."""
    lists = {name: [entry._asdict() for entry in getattr(manifest, name)] for name in ENTRIES}
    write_sealed(run / "study.json", {"format": FORMAT, **manifest._asdict(), **lists})


def read_record(run: Path, name: str) -> NodeRecord | None:
    """Read the `NodeRecord` of a node from a run folder; None if it is missing or damaged.

    A record is damaged if its file or its arrays were changed after writing. A warning says so.
    """
    folder = node_folder(run, name)
    found = read_sealed(folder / "record.json")
    if found is None or found.pop("arrays", "") != _digest(folder / "arrays.npz"):
        if (folder / "record.json").exists():
            warnings.warn(f"{folder}: record.json or arrays.npz is damaged: left out", stacklevel=2)
        return None
    return NodeRecord(**found) if set(found) == set(NodeRecord._fields) else None


def write_record(
    run: Path, record: NodeRecord, arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a node's record and arrays to a run folder; delete the arrays of an earlier record.

    The arrays are written first, because the record contains their checksum.
    """
    folder = node_folder(run, record.name)
    path = folder / "arrays.npz"
    if not arrays:
        remove(path)
    else:
        write_bytes(path, lambda file: np.savez_compressed(file, **arrays))  # pyright: ignore[reportArgumentType]  # not `allow_pickle`
    write_sealed(folder / "record.json", {**record._asdict(), "arrays": _digest(path)})


def _digest(path: Path) -> str:
    """Return the SHA-256 checksum of a file; "" if it is missing."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
