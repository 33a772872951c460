"""The contract of a node: what a study computes, in a folder named by all that makes it.

A kind of node is one class in one file of this folder. Planner and executor know the contract and
no kind. A node whose result is arrays (a model, a trigger) keeps them as a checkpoint; an
`AnalysisNode` computes rows and arrays for tables and page and keeps those.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...config.loading import to_mapping
from ...core.types import TrainState, Variables
from ...metrics.attack_success import Counts, der
from ...results.artifacts import NodeEntry, Row
from ...results.tables import COLUMNS
from ...training.loop import Hooks, LogRecord, TrainLoop
from ..attack_run import AttackRun
from ..context import StudyContext

Tables = dict[str, list[Row]]


@dataclasses.dataclass
class Artifact:
    """What a finished node left.

    `counts` on the test set (None where it is no model); wall `seconds`, measurements included; the
    `records` it logged; the `environment` it was computed in; `members`: how many nodes its program
    computed together (their seconds are the same seconds). Its arrays, `tree`, are read by `load`
    when they are asked for, and can be dropped from memory by `release`.
    """

    load: Callable[[], Any]
    counts: Counts | None
    seconds: float
    records: list[LogRecord]
    environment: dict[str, Any]
    members: int

    @functools.cached_property
    def tree(self) -> Any:
        """Its arrays."""
        return self.load()

    def release(self) -> None:
        """Drop the arrays from memory."""
        self.__dict__.pop("tree", None)


class Failure(NamedTuple):
    """A node that broke, in one line, or that is `unfinished`."""

    message: str
    unfinished: bool = False

    @property
    def status(self) -> str:
        """The line for a table."""
        return f"{'not finished' if self.unfinished else 'failed'}: {self.message}"


Result = Artifact | Failure


class Inputs(SimpleNamespace):
    """The artifacts of a node's needs, by their names; None for an optional one that is missing."""


class Findings(NamedTuple):
    """What an analysis found: rows by table, arrays and JSON facts for the page."""

    tables: Tables = {}
    arrays: Mapping[str, np.ndarray] = {}
    facts: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """A computation of a study. Subclasses say what; names are unique within a study.

    `kind` names the class in study.json, `title` in messages. `listed` nodes have rows in
    results.csv. `optional` inputs may be missing, `tables_need` inputs are read for the tables even
    when the node itself is finished.
    """

    context: StudyContext
    run: AttackRun

    kind: ClassVar[str]
    title: ClassVar[str]
    listed: ClassVar[bool] = False
    analysis: ClassVar[bool] = False
    optional: ClassVar[tuple[str, ...]] = ()
    tables_need: ClassVar[tuple[str, ...]] = ()

    @property
    def what(self) -> str:
        """The last part of the name."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The unique name `<attack>/seed<n>/<what>`."""
        return f"{self.run.label}/seed{self.run.seed}/{self.what}"

    @property
    def label(self) -> str:
        """The name of its model or detection in tables and pictures; "" for neither."""
        return ""

    @property
    def recipe(self) -> dict[str, Any]:
        """All that makes it, as plain data."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """Where its result is kept: a function of the recipe."""
        raise NotImplementedError

    @property
    def needs(self) -> dict[str, Node]:
        """The nodes it begins with, by the names that `compute` and `loop` know them by."""
        return {}

    @property
    def group(self) -> Hashable:
        """Nodes of a kind that agree in it run as members of one program; None: alone."""
        return None

    @property
    def is_loop(self) -> bool:
        """Whether it is one train loop (`loop`) and not several (`compute`)."""
        return False

    @property
    def watch_every(self) -> int:
        """Steps between measurements by `watch` (0: none)."""
        return 0

    @property
    def about(self) -> dict[str, Any]:
        """What is kept beside its arrays, for whoever finds them alone."""
        return {}

    def like(self) -> Any:
        """Return the structure, shapes and dtypes of its tree."""
        raise NotImplementedError

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return its train loop."""
        raise NotImplementedError

    def tree_of(self, loop: TrainLoop, state: TrainState) -> Any:
        """Return the tree that its loop ended with."""
        return state.variables

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Any, list[LogRecord]]:
        """Return the tree and the records logged on the way, where it is more than one loop."""
        raise NotImplementedError

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Return what measures a state along the way, for plots."""
        return lambda state: {}

    def count(self, inputs: Inputs, tree: Any) -> Counts | None:
        """Return its counts on the test set; None where it is no model."""
        return None

    def variables(self, tree: Any) -> Variables:
        """Return the model's variables in its tree."""
        return tree

    def tables(self, inputs: Inputs, artifact: Artifact) -> Tables:
        """Return its rows by table."""
        return {}

    def arrays(self, inputs: Inputs, artifact: Artifact) -> Mapping[str, np.ndarray]:
        """Return what the page shows of it, as `results.artifacts` has it by kind."""
        return {}

    def facts(self, inputs: Inputs, artifact: Artifact) -> Mapping[str, Any]:
        """Return what the page says of it, as JSON."""
        return {}

    @property
    def rows(self) -> list[Row]:
        """The columns that identify its rows in results.csv; one for each seed that shares it."""
        return [identity(self.context, self.run, self.label)]

    @property
    def digest(self) -> str:
        """The name of all that makes it."""
        return recipe_hash(self.recipe)

    @property
    def entry(self) -> NodeEntry:
        """Its line in study.json."""
        where = (self.run.label, self.run.seed, self.label, self.listed)
        return NodeEntry(self.name, self.kind, *where, self.rows, self.digest)


class AnalysisNode(Node):
    """A node that computes rows and arrays for tables and page from finished models.

    It is kept in the run folder, is left to `--report` by a part of a study, and costs the page a
    section where it fails.
    """

    analysis = True

    @property
    def digest(self) -> str:
        """The name of its settings and of all that it needs."""
        needs = {name: node.digest for name, node in self.needs.items()}
        return recipe_hash({"recipe": self.recipe, "needs": needs})

    def analyse(self, inputs: Inputs) -> Findings:
        """Return what was found."""
        raise NotImplementedError


def cache_folder(context: StudyContext) -> Path:
    """Return the folder for what studies may share."""
    cache = context.config.cache
    return Path(cache).expanduser() if cache else context.workdir / "checkpoints"


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Return twelve hex digits that name a result by all that made it."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def reserved_recipe(context: StudyContext, run: AttackRun) -> dict[str, Any]:
    """Return what repairs and inversions of an attack run begin with, as part of their recipes."""
    reserved = to_mapping(context.config.reserved)
    return {"victim": run.recipe, "seed": run.seed, "reserved": reserved}


def identity(context: StudyContext, run: AttackRun, label: str, seed: int | None = None) -> Row:
    """Return the columns that identify a row of results.csv."""
    model = context.config.model
    net = " ".join(f"{key}={value}" for key, value in to_mapping(model.config).items())
    return {
        "dataset": context.dataset.info.name,
        "model": model.name,
        "attack": run.label,
        "poison_rate": run.poison_rate,
        "defense": label,
        "seed": run.seed if seed is None else seed,
        "attack_seed": run.attack_seed,
        "classes": context.dataset.info.num_classes,
        "net": net,
        "published": context.config.published.get(f"{run.label}/{label}", "none"),
    }


def result_row(
    row: Row, artifact: Artifact, before: Counts | None = None, more: Mapping[str, Any] = {}
) -> Row:
    """Return a row of results.csv; `before` are the counts of the model before the defence."""
    counts, last = artifact.counts, artifact.records[-1] if artifact.records else {}
    numbers = {
        "acc": counts.acc,
        "asr": counts.asr,
        "ra": counts.ra,
        "der": der(before, counts) if before else None,
        "n_clean": int(counts.clean.sum()),
        "n_triggered": int(counts.triggered.sum()),
        "seconds": artifact.seconds,
        "acc_non_target": counts.acc_non_target,
        "members": artifact.members,
        "cosine": last.get("cosine"),
        "distance_ratio": last.get("distance_ratio"),
        "commit": artifact.environment["commit"],
        "device": artifact.environment["device"],
    }
    values = dict.fromkeys(COLUMNS) | row | numbers | more | {"status": "ok"}
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> Any:
    """Return None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def class_rows(context: StudyContext, row: Row, counts: Counts) -> list[Row]:
    """Return the rows of per_class.csv for a model: the counts of every true class."""
    where = {name: row[name] for name in ("attack", "defense", "seed")}
    columns = {name: values.tolist() for name, values in counts._asdict().items()}
    return [
        where | {"class": name} | {column: values[i] for column, values in columns.items()}
        for i, name in enumerate(context.dataset.info.classes)
    ]


def model_tables(
    node: Node, artifact: Artifact, before: Counts | None = None, more: Mapping[str, Any] = {}
) -> Tables:
    """Return the rows of a model in results.csv and per_class.csv."""
    results = [result_row(row, artifact, before, more) for row in node.rows]
    per_class = [line for row in results for line in class_rows(node.context, row, artifact.counts)]
    return {"results": results, "per_class": per_class}


def watched_rates(counts: Counts) -> LogRecord:
    """Return ACC and, where there is a trigger, ASR as metrics of a watch."""
    rates = {"watch_acc": counts.acc}
    if counts.triggered.sum():
        rates["watch_asr"] = counts.asr
    return rates
