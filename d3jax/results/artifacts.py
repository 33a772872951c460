"""The run folder in types: what a study leaves, and how it is read again. No jax in here.

    RUN/
      study.json              Manifest: data set, net, attacks, every node in order
      config.yaml             the settings in full
      environment.json        versions, commit, devices
      nodes/<node's name>/    one folder for each finished or failed node
          record.json         NodeRecord: status, rows of tables, facts, checksum of the arrays
          metrics.jsonl       one log record a line
          arrays.npz          arrays that the page shows, by the names of the TypedDicts below
          failed.json         error and traceback, where an analysis failed
      checkpoints/            models, where the study has no cache elsewhere
      *.csv, report.html, figures/    made from the above (`python -m d3jax.report RUN`)

A node's name is `<attack>/seed<n>/<what>`. Tables and page depend on nothing but these files.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from ..core.errors import DataError
from ..core.paths import user_path
from ..core.records import LogRecord, Row
from ..runtime.files import read_json, read_sealed, read_text, remove, write_bytes, write_sealed
from .log_records import parse_log

FORMAT = 2
"""Version of the run folder's layout."""


class AttackEntry(NamedTuple):
    """An attack of a study: its `label`, whether it has a trigger, and the classes it leads to."""

    label: str
    attacked: bool
    targets: list[int]


class NodeEntry(NamedTuple):
    """A node of a study as planned, finished or not.

    `kind` is the class of node, `attack` and `seed` say which attack run it belongs to. `label` is
    the name of its model in tables and pictures ("none": the victim), of its detection, or "".
    `role` says what stands in results.csv of it: the model of a "victim", a "defense" or an
    "evolution", a "detection" that failed, or nothing (""). `rows` are the columns that identify
    those rows, one for each seed that shares the node. `recipe` names all that makes it: a record
    of another one is old.
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
    """An entry of `evolutions` in the config, whichever attacks it runs on.

    `rates` are the learning rates of every step of an update. `group` is equal where evolutions
    differ in their rates alone; the rates are `constant`, or were `scaled` to a given mean.
    """

    label: str
    group: str
    constant: bool
    scaled: bool
    rates: list[float]


class Manifest(NamedTuple):
    """A study as planned. `external` says how a model from elsewhere was read ("" without one)."""

    dataset: str
    classes: list[str]
    model: str
    seeds: list[int]
    external: str
    attacks: list[AttackEntry]
    evolutions: list[EvolutionEntry]
    nodes: list[NodeEntry]

    def labels(self, role: str) -> set[str]:
        """Return the labels of the nodes of a role, such as "evolution"."""
        return {node.label for node in self.nodes if node.role == role}


class NodeRecord(NamedTuple):
    """What a node left: `status` "ok" or "failed: …", rows by table, and `facts` by name (JSON)."""

    name: str
    recipe: str
    status: str
    tables: dict[str, list[Row]]
    facts: dict[str, Any]


class SampleArrays(TypedDict, total=False):
    """Kind `report_samples`, a node for each model of a first seed: its predicted classes.

    The victim's node (label "none") also has the images: `clean` and `triggered` uint8
    [n, H, W, C], true `labels` [n] and the attacker's `targets` [n]; its facts are `psnr` (dB),
    `ssim` and `largest` (8-bit levels) between clean and triggered images.
    """

    predicted_clean: np.ndarray
    predicted_triggered: np.ndarray
    clean: np.ndarray
    triggered: np.ndarray
    labels: np.ndarray
    targets: np.ndarray


class FeatureArrays(TypedDict):
    """Kind `features`, a node for each model of a first seed: N clean and M triggered images.

    `pca` and `tsne` are points [N + M, 2], clean images first; `labels` [N] are their classes.
    Facts: `twin_distance`, `silhouette`, and `inverted`: whether the trigger is an inverted one.
    """

    pca: np.ndarray
    tsne: np.ndarray
    labels: np.ndarray


class DetectionArrays(TypedDict):
    """Kind `model_detection`: the verdict of a model detector on K classes, for a first seed.

    `scores` float [K] and `flagged` bool [K]; the method's own columns [K], of trigger inversion
    `norm`, `index`, `success` and `passes`. Where the detector finds triggers, `triggers` uint8
    [K, H, W, C] on grey, and `smallest` uint8 [n, H, W, C], the most suspicious trigger on the clean
    images of the victim's `report_samples`. Facts: `statistic`, `threshold`, and the method's own,
    of trigger inversion `median` and `spread` of the norms.
    """

    scores: np.ndarray
    flagged: np.ndarray
    triggers: NotRequired[np.ndarray]
    smallest: NotRequired[np.ndarray]


class ScoreArrays(TypedDict):
    """Kinds `sample_detection` and `input_detection`: N samples or inputs, for a first seed.

    `scores` float [N], `flagged` bool [N] by the detector's own rule, `positive` bool [N]: whether
    it is poisoned or triggered. Inputs are the clean test images, then the triggered ones.
    """

    scores: np.ndarray
    flagged: np.ndarray
    positive: np.ndarray


class TrainingArrays(TypedDict, total=False):
    """Kind `training_time`: what a defence found out about N training images.

    `flags` bool [N] are the poisoned rows, `suspects` and `labelled` bool [N] the defence's choice;
    each score (`entropy`, `cross_entropy`, `symmetric`, `mixture`, `rescored`, `rescored_entropy`)
    is float [N], with `precision/<score>` and `recall/<score>` [N] of its lowest k rows, k = 1 … N.
    Fact: `first_stage`, the name of the node that its first stage is.
    """

    flags: np.ndarray
    suspects: np.ndarray
    labelled: np.ndarray


class LandscapeArrays(TypedDict, total=False):
    """Kind `loss_landscape`, a node for each attack of a first seed. Fact `defenses` lists its lines.

    Of each line: `<defense>/ts` [T]; `<defense>/<statistics>/<quantity>` [T], where statistics are
    interpolated, estimated or first and quantities clean_loss, backdoor_loss, acc, asr;
    `<defense>/taylor` [3]: value, slope, curvature; `<defense>/relative` [P] and
    `<defense>/counts` [P, bins]: change of every tensor. `edges` [P, bins + 1] are shared; fact
    `tensors` names the P tensors. Where there is a plane: fact `plane` names its three models,
    `plane/places` [3, 2], `plane/xs`, `plane/ys`, `plane/clean`, `plane/backdoor` [ys, xs].
    """

    eigenvalues: np.ndarray
    edges: np.ndarray


class ForgettingArrays(TypedDict):
    """Kind `forgetting`: a linear model's prediction for one evolution run of a first seed.

    `eigenvalues` [D], largest first; `shares` [D] of the trigger's direction along each; measured
    `scores` [T + 1]; `left/squared` and `left/softmax` [T]: shares of the first score predicted.
    """

    eigenvalues: np.ndarray
    shares: np.ndarray
    scores: np.ndarray


ARRAYS = {
    "report_samples": SampleArrays,
    "features": FeatureArrays,
    "model_detection": DetectionArrays,
    "sample_detection": ScoreArrays,
    "input_detection": ScoreArrays,
    "training_time": TrainingArrays,
    "loss_landscape": LandscapeArrays,
    "forgetting": ForgettingArrays,
}
"""The arrays of each kind of node that leaves some."""


class Finished(NamedTuple):
    """A finished node: its entry, its record, and its arrays for the page."""

    entry: NodeEntry
    record: NodeRecord
    arrays: dict[str, np.ndarray]


class RunFolder:
    """A run folder to read. Raises `DataError` where there is none, or one of another layout."""

    def __init__(self, path: str | Path):
        self.path = user_path(path)
        self.manifest = read_manifest(self.path)
        self._recipes = {entry.name: entry.recipe for entry in self.manifest.nodes}

    def record(self, name: str) -> NodeRecord | None:
        """Return a node's record; None where it left none, or one that is old or broken."""
        record = read_record(self.path, name)
        return record if record and record.recipe == self._recipes.get(name) else None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return a node's arrays for the page; {} where it left none."""
        path = self._of(name) / "arrays.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)

    def metrics(self, name: str) -> list[LogRecord]:
        """Return a node's log records, in order; lines that are none are skipped, with a warning."""
        path = self._of(name) / "metrics.jsonl"
        records, damaged = parse_log(read_text(path))
        if damaged:
            skipped = f"{damaged} line{'s' * (damaged > 1)} skipped"
            warnings.warn(f"{path}: {skipped}, as no log record", stacklevel=2)
        return records

    def finished(self, kind: str, attack: str | None = None) -> Iterator[Finished]:
        """Yield the finished nodes of a kind, in the study's order."""
        for entry in self.manifest.nodes:
            if entry.kind == kind and attack in (None, entry.attack):
                record = self.record(entry.name)
                if record and record.status == "ok":
                    yield Finished(entry, record, self.arrays(entry.name))

    def text(self, name: str) -> str:
        """Return the text of a file in the folder, such as config.yaml; "" where there is none."""
        return read_text(self.path / name)

    def environment(self) -> dict[str, Any]:
        """Return what environment.json says; {} where it is missing or cut off."""
        found = read_json(self.path / "environment.json")
        return found if isinstance(found, dict) else {}

    def _of(self, name: str) -> Path:
        return node_folder(self.path, name)


def node_folder(run: Path, name: str) -> Path:
    """Return the folder of a node's files in a run folder."""
    return run / "nodes" / name


ENTRIES = {"attacks": AttackEntry, "evolutions": EvolutionEntry, "nodes": NodeEntry}
"""The lists of a manifest, by what their entries are."""


def read_manifest(run: Path) -> Manifest:
    """Return the manifest of a run folder. Raises `DataError` for anything else, in one line."""
    path = run / "study.json"
    if not path.is_file():
        written = (
            " (it was written by an earlier d3jax: run its config again)"
            if (run / "metrics.jsonl").exists()
            else ""
        )
        raise DataError(f"{run}: no run folder of d3jax, it has no study.json{written}")
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
    """Write study.json."""
    lists = {name: [entry._asdict() for entry in getattr(manifest, name)] for name in ENTRIES}
    write_sealed(run / "study.json", {"format": FORMAT, **manifest._asdict(), **lists})


def read_record(run: Path, name: str) -> NodeRecord | None:
    """Return the record in a node's folder; None where there is none, or it or its arrays changed."""
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
    """Write a node's record and, before it, its arrays; those of an earlier record go."""
    folder = node_folder(run, record.name)
    path = folder / "arrays.npz"
    if not arrays:
        remove(path)
    else:
        write_bytes(path, lambda file: np.savez_compressed(file, **arrays))  # pyright: ignore[reportArgumentType]  # not `allow_pickle`
    write_sealed(folder / "record.json", {**record._asdict(), "arrays": _digest(path)})


def _digest(path: Path) -> str:
    """Return the checksum of a file; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
