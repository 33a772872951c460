"""The base class `Node`, a computation of a study, and the types and helpers of its kinds.

A node is kept in a folder that its recipe names. A kind of node is one class in one file of this
folder. Planner and executor use the contract of `Node` only and know no kind. A node whose result
is arrays (a model, a trigger) saves them as a checkpoint. An `AnalysisNode` computes and saves rows
and arrays for tables and page.
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
    """The result of a finished node of a study: its arrays, test counts, time and log records.

    `counts` are those on the test set (None if the result is not a model). `seconds` is wall time,
    including measurements. `records` are the log records, and `environment` says where the node was
    computed. `members` is the number of nodes that its program computed together; they all have
    the same seconds. The arrays, `tree`, are loaded by `load` at their first use, and `release`
    drops them from memory.
    """

    load: Callable[[], Any]
    counts: Counts | None
    seconds: float
    records: list[LogRecord]
    environment: dict[str, Any]
    members: int

    @functools.cached_property
    def tree(self) -> Any:
        """Return the arrays of a node's result; load them from the checkpoint if necessary."""
        return self.load()

    @property
    def variables(self) -> Any:
        """Return the model's variables in a node's result, which may hold other arrays too."""
        return getattr(self.tree, "variables", self.tree)

    def release(self) -> None:
        """Drop the arrays of a node's result from memory; they can be loaded again."""
        self.__dict__.pop("tree", None)


class Failure(NamedTuple):
    """The reason, in one line, why a node has no result: it failed, or it is `unfinished`."""

    message: str
    unfinished: bool = False

    @property
    def status(self) -> str:
        """Return the reason of a node's failure as text for the column `status` of results.csv."""
        return f"{'not finished' if self.unfinished else 'failed'}: {self.message}"


Result = Artifact | Failure


class Inputs(SimpleNamespace):
    """The results (artifacts) that a node reads, by field name; None for a missing optional one."""


class Findings(NamedTuple):
    """The output of a node for the tables and the report page: rows, arrays and JSON facts.

    `results.artifacts` documents the arrays and facts of each kind.
    """

    tables: Mapping[str, list[Row]] = {}
    arrays: Mapping[str, np.ndarray] = {}
    facts: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """A node: one computation of a study with a saved result; subclasses define the computation.

    Names are unique within a study. A field that is a node is needed by this node. The methods
    `compute`, `loop` and `findings` receive its artifact under the field's name. `choice` is the
    node's entry in the config, if it has one.

    A kind of node is described by class variables or properties:

    - `kind`: its name in study.json.
    - `title`: its name in messages.
    - `role`: its rows in results.csv (`NodeEntry.role`).
    - `analysis`: whether it is an `AnalysisNode`.
    - `shared`: whether its result is kept in the cache, where other studies find it.
    - `optional`: the names of inputs that may be missing.
    - `outcome_of`: the name of an input; if that input failed, this node fails with its message.
    - `read_again`: the names of inputs that the tables need even if this node is finished.
    - `is_loop`: whether it is one train loop (`loop`), and not any other work (`compute`).
    - `group`: nodes of a kind with the same group run as members of one program (None: alone).
    - `watch_every`: the number of steps between two measurements by `watch` (0: none).
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
        """Return the entry of the config (a `Choice`) of a node that always has one."""
        assert self.choice is not None
        return self.choice

    @property
    def label(self) -> str:
        """Return the name of a node's model or detection in tables and figures; "" without one."""
        return self.choice.label if self.choice else ""

    @property
    def what(self) -> str:
        """Return the last part of a node's name `<attack>/seed<n>/<what>`; usually its label."""
        return self.label

    @property
    def seed(self) -> int:
        """Return the seed in a node's name and recipe; by default the seed of the attack run."""
        return self.run.seed

    @property
    def name(self) -> str:
        """Return the name of a node, which is unique in a study: `<attack>/seed<n>/<what>`."""
        return f"{self.run.label}/seed{self.seed}/{self.what}"

    @property
    def needs(self) -> dict[str, Node]:
        """Return the nodes that a node needs, by the names of the fields that hold them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Node)}

    @property
    def settings(self) -> dict[str, Any]:
        """Return what determines a node's result besides attack run and config entry."""
        return {}

    @property
    def recipe(self) -> dict[str, Any]:
        """Return everything that determines a node's result, as plain data to be hashed."""
        chosen = self.choice and {
            "name": self.choice.name,
            "config": to_mapping(self.choice.config),
        }
        start = {"kind": self.kind, "seed": self.seed, "victim": self.run.recipe}
        return start | {"choice": chosen} | self.settings

    @property
    def digest(self) -> str:
        """Return the hash of a node's recipe, which also names the folder of the result."""
        return recipe_hash(self.recipe)

    @property
    def folder(self) -> Path:
        """Return the folder of a node's result: in the cache if `shared`, else the run folder."""
        context, run = self.context, self.run
        root, first, what = context.workdir / "checkpoints", run.label, self.what
        if self.shared:
            root = user_path(context.config.cache or root, "cache")
            data = re.sub(r"[^\w.+-]+", "_", context.dataset.info.name)[:60]
            first, what = f"{data}-{run.label}", self.kind
        return root / f"{first}-{what}-seed{self.seed}-{self.digest}"

    @property
    def rows(self) -> list[Row]:
        """Return the identifying columns of a node's rows in results.csv, one row for each seed."""
        return [identity(self.context, self.run, self.label)]

    @property
    def entry(self) -> NodeEntry:
        """Return the entry of a node in study.json, as a `NodeEntry`."""
        where = (self.run.label, self.run.seed, self.label, self.role)
        return NodeEntry(self.name, self.kind, *where, self.rows, self.digest)

    @property
    def network(self) -> Model:
        """Return the `Model` (pure functions) of a node's variables; by default the study's."""
        return self.context.model

    def like(self) -> Any:
        """Return the structure, shapes and dtypes of a node's arrays, to load a checkpoint.

        By default they are those of the network's variables.
        """
        return jax.eval_shape(self.network.init, jax.random.key(0))

    def loop(self, inputs: Inputs) -> TrainLoop:
        """Return the `TrainLoop` that computes a node; only for kinds of nodes with `is_loop`."""
        raise NotImplementedError

    def tree_of(self, loop: TrainLoop, state: TrainState) -> Any:
        """Return the arrays of a node's result, taken from the final state of its train loop."""
        return state.variables

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Any, list[LogRecord]]:
        """Compute a node without a train loop; return the arrays of its result and log records."""
        raise NotImplementedError

    def watch(self, inputs: Inputs) -> Callable[[TrainState], LogRecord]:
        """Return a function that measures the model during a node's training, for plots."""
        return lambda state: {}

    def count(self, inputs: Inputs, tree: Any) -> Counts | None:
        """Return the `Counts` of a node's model on the test set with the victim's trigger.

        Kinds whose result is not a model return None.
        """
        variables = getattr(tree, "variables", tree)
        return self.evaluator(variables, inputs.victim.tree.trigger, self.context.dataset.test)

    @property
    def evaluator(self) -> Callable[..., Counts]:
        """Return the function `(variables, trigger, split) -> Counts` of a node's network."""
        if self.network is self.context.model:
            return self.run.evaluate  # compiled once per attack
        return evaluator(self.context, self.run.attack, self.network)

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return the rows, arrays and facts of a finished node for tables and report page."""
        return Findings(model_tables(self, artifact) if self.role else {})


class AnalysisNode(Node):
    """A node that computes rows and arrays for tables and report page from finished models.

    It is kept in the run folder. If it fails, the page lacks a section. Its recipe contains its
    needs and its `version`, but not its `choice`. Raise the version when the analysis computes
    other rows or arrays; records of another version are then computed again.
    """

    analysis = True
    version: ClassVar[int] = 1

    @property
    def digest(self) -> str:
        """Return the hash of an analysis node: of kind, version, settings and needed nodes."""
        needs = {name: node.digest for name, node in self.needs.items()}
        own = {"kind": self.kind, "version": self.version, "settings": self.settings}
        return recipe_hash({**own, "needs": needs})

    @property
    def folder(self) -> Path:
        """Return the folder of an analysis node in the run folder: `nodes/<name>`."""
        return node_folder(self.context.workdir, self.name)

    def analyse(self, inputs: Inputs) -> Findings:
        """Compute the rows, arrays and facts of an analysis from the results that it needs."""
        raise NotImplementedError


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Return the hash of a recipe (plain data), as twelve hex digits."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def identity(context: StudyContext, run: AttackRun, label: str, seed: int | None = None) -> Row:
    """Return the columns that identify a model's row in results.csv, such as attack and seed."""
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
    """Return the columns that identify a detector's row in samples.csv and inputs.csv."""
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
    """Return the rows of a node's model in results.csv and per_class.csv, by table.

    `before` are the counts of the model before the defence; from them follows the DER. `more` are
    additional columns that only some kinds of node have.
    """
    after = artifact.counts
    effect = der(before, after) if before and after else None
    classes = node.context.dataset.info.classes
    return rows_of_model(node.rows, artifact, classes, {"der": effect, **more})


def watched_rates(counts: Counts) -> LogRecord:
    """Return a log record of `watch_acc`, and `watch_asr` if there is a trigger, from `Counts`."""
    rates = {"watch_acc": counts.acc}
    return rates | {"watch_asr": counts.asr} if counts.triggered.sum() else rates
