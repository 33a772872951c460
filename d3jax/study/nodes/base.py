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
import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from ...config.loading import to_mapping
from ...config.study import Choice
from ...core.paths import user_path
from ...core.records import LogRecord, Row
from ...core.types import Model, TrainState
from ...metrics.attack_success import Counts, der
from ...results.artifacts import NodeEntry, node_folder
from ...results.tables import rows_of_model
from ...training.loop import Hooks, TrainLoop
from ..attack_run import AttackRun, evaluator
from ..context import StudyContext


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

    @property
    def variables(self) -> Any:
        """The variables of the model in its tree."""
        return getattr(self.tree, "variables", self.tree)

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
    """What tables and page need of a node: rows by table, arrays and JSON facts.

    `results.artifacts` says which arrays and facts each kind has.
    """

    tables: Mapping[str, list[Row]] = {}
    arrays: Mapping[str, np.ndarray] = {}
    facts: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """A computation of a study. Subclasses say what; names are unique within a study.

    Fields that are nodes are what it needs: `compute`, `loop` and `findings` know their artifacts
    by the fields' names. `choice` is its entry in the config, if it has one.

    Of a kind: `kind` is its name in study.json, `title` in messages. `role` says
    what stands in results.csv of it (`NodeEntry.role`). `shared` ones are kept in the cache. `optional` inputs may be missing; where
    that named `outcome_of` failed, the node failed for the same reason; those of
    `read_again` are read for the tables even when the node itself is finished. `is_loop`: it is one
    train loop (`loop`) and not several (`compute`). Nodes of a kind with one `group` run as members
    of one program (None: alone). `watch_every`: steps between measurements by `watch` (0: none).
    """

    context: StudyContext
    run: AttackRun
    choice: Choice | None = None

    kind: ClassVar[str]
    title: ClassVar[str]
    role: ClassVar[str] = ""
    analysis: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    optional: ClassVar[tuple[str, ...]] = ()
    outcome_of: ClassVar[str] = ""
    read_again: ClassVar[tuple[str, ...]] = ()
    is_loop: ClassVar[bool] = False
    group: ClassVar[Hashable] = None
    watch_every: ClassVar[int] = 0

    @property
    def chosen(self) -> Choice:
        """Its entry in the config, of a kind that always has one."""
        assert self.choice is not None
        return self.choice

    @property
    def label(self) -> str:
        """The name of its model or detection in tables and pictures; "" for neither."""
        return self.choice.label if self.choice else ""

    @property
    def what(self) -> str:
        """The last part of its name."""
        return self.label

    @property
    def seed(self) -> int:
        """The seed in its name and recipe."""
        return self.run.seed

    @property
    def name(self) -> str:
        """The unique name `<attack>/seed<n>/<what>`."""
        return f"{self.run.label}/seed{self.seed}/{self.what}"

    @property
    def needs(self) -> dict[str, Node]:
        """The nodes it begins with, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Node)}

    @property
    def settings(self) -> dict[str, Any]:
        """What makes it besides attack run and choice, as plain data."""
        return {}

    @property
    def recipe(self) -> dict[str, Any]:
        """All that makes it, as plain data."""
        chosen = self.choice and {
            "name": self.choice.name,
            "config": to_mapping(self.choice.config),
        }
        start = {"kind": self.kind, "seed": self.seed, "victim": self.run.recipe}
        return start | {"choice": chosen} | self.settings

    @property
    def digest(self) -> str:
        """The name of all that makes it."""
        return recipe_hash(self.recipe)

    @property
    def folder(self) -> Path:
        """Where its result is kept."""
        context, run = self.context, self.run
        root, first, what = context.workdir / "checkpoints", run.label, self.what
        if self.shared:
            root = user_path(context.config.cache or root, "cache")
            data = re.sub(r"[^\w.+-]+", "_", context.dataset.info.name)[:60]
            first, what = f"{data}-{run.label}", self.kind
        return root / f"{first}-{what}-seed{self.seed}-{self.digest}"

    @property
    def rows(self) -> list[Row]:
        """The columns that identify its rows in results.csv; one for each seed that shares it."""
        return [identity(self.context, self.run, self.label)]

    @property
    def entry(self) -> NodeEntry:
        """Its line in study.json."""
        where = (self.run.label, self.run.seed, self.label, self.role)
        return NodeEntry(self.name, self.kind, *where, self.rows, self.digest)

    @property
    def network(self) -> Model:
        """The network that the variables in its tree belong to."""
        return self.context.model

    def like(self) -> Any:
        """Return the structure, shapes and dtypes of its tree: a model's variables."""
        return jax.eval_shape(self.network.init, jax.random.key(0))

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return its train loop."""
        raise NotImplementedError

    def tree_of(self, loop: TrainLoop, state: TrainState) -> Any:
        """Return the tree that its loop ended with."""
        return state.variables

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Any, list[LogRecord]]:
        """Return its tree and the records logged on the way, where it is more than one loop."""
        raise NotImplementedError

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Return what measures a state along the way, for plots."""
        return lambda state: {}

    def count(self, inputs: Inputs, tree: Any) -> Counts | None:
        """Return its counts on the test set under the victim's trigger; None for no model."""
        variables = getattr(tree, "variables", tree)
        given = (variables, inputs.victim.tree.trigger, self.context.dataset.test)
        if self.network is self.context.model:
            return self.run.evaluate(*given)  # compiled once an attack
        return evaluator(self.context, self.run.attack, self.network)(*given)

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return what tables and page need of it."""
        return Findings(model_tables(self, artifact) if self.role else {})


class AnalysisNode(Node):
    """A node that computes rows and arrays for tables and page from finished models.

    It is kept in the run folder, is left to `--report` by a part of a study, and costs the page a
    section where it fails. Its `choice` is no part of its recipe, but its needs are, and its
    `version`: raise that when it computes other rows or arrays, and kept records count as old.
    """

    analysis = True
    version: ClassVar[int] = 1

    @property
    def digest(self) -> str:
        """The name of its settings and of all that it needs."""
        needs = {name: node.digest for name, node in self.needs.items()}
        own = {"kind": self.kind, "version": self.version, "settings": self.settings}
        return recipe_hash({**own, "needs": needs})

    @property
    def folder(self) -> Path:
        """Its folder in the run folder."""
        return node_folder(self.context.workdir, self.name)

    def analyse(self, inputs: Inputs) -> Findings:
        """Return what was found."""
        raise NotImplementedError


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Return twelve hex digits that name a result by all that made it."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def identity(context: StudyContext, run: AttackRun, label: str, seed: int | None = None) -> Row:
    """Return the columns that identify a row of results.csv."""
    model = context.config.model
    return {
        "dataset": context.dataset.info.name,
        "model": model.name,
        "attack": run.label,
        "poison_rate": run.poison_rate,
        "defense": label,
        "seed": run.seed if seed is None else seed,
        "attack_seed": run.attack_seed,
        "classes": context.dataset.info.num_classes,
        "net": " ".join(f"{key}={value}" for key, value in to_mapping(model.config).items()),
        "published": context.config.published.get(f"{run.label}/{label}", "none"),
    }


def detection_identity(node: Node) -> Row:
    """Return the columns that identify a detection's row in samples.csv and inputs.csv."""
    row = identity(node.context, node.run, node.label)
    return {
        "dataset": row["dataset"],
        "model": row["model"],
        "attack": row["attack"],
        "poison_rate": row["poison_rate"],
        "detection": node.label,
        "seed": row["seed"],
        "published": row["published"],
    }


def model_tables(
    node: Node, artifact: Artifact, before: Counts | None = None, more: Mapping[str, Any] = {}
) -> dict[str, list[Row]]:
    """Return the rows of a model in results.csv and per_class.csv.

    `before` are the counts of the model before the defence, `more` are columns of the kind's own.
    """
    after = artifact.counts
    effect = der(before, after) if before and after else None
    classes = node.context.dataset.info.classes
    return rows_of_model(node.rows, artifact, classes, {"der": effect, **more})


def watched_rates(counts: Counts) -> LogRecord:
    """Return ACC and, where there is a trigger, ASR as metrics of a watch."""
    rates = {"watch_acc": counts.acc}
    return rates | {"watch_asr": counts.asr} if counts.triggered.sum() else rates
