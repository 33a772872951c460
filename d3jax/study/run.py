"""Functions that run or check a study, from its config to its run folder.

A study poisons, trains, repairs, detects, updates and evaluates. `graph.py` defines its nodes,
`planner.py` their order, and `executor.py` runs them. `report/` makes the page from the run folder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..config.loading import dumps, loads, to_mapping
from ..config.study import Choice, StudyConfig
from ..config.yaml_text import parse_yaml
from ..core.errors import ConfigError
from ..core.paths import user_path
from ..evolution.fresh_sets import steps_of, update_rates
from ..report import make_report
from ..report.terminal import print_detections, print_table
from ..results.artifacts import (
    AttackEntry,
    EvolutionEntry,
    Manifest,
    Row,
    RunFolder,
    write_manifest,
)
from ..results.metric_sinks import check_sinks
from ..results.tables import make_tables, result_rows, write_tables
from ..runtime.checkpoint import exists
from ..runtime.distributed import is_primary, same_everywhere
from ..runtime.files import read_text, write_text
from ..runtime.progress import Progress
from ..runtime.stopping import stoppable
from .attack_run import targets_of
from .context import StudyContext, fresh_split, open_context
from .folders import check_folders, make_folders
from .graph import make_nodes
from .ledger import Ledger
from .nodes.base import Node
from .planner import part_of, plan
from .registries import REGISTRIES

PRODUCTS = {"float32": "highest", "tensorfloat32": "tensorfloat32", "bfloat16": "default"}
"""The name that jax has for each precision.

jax's default for float32 on NVIDIA GPUs is TF32, which gives other results.
"""

TABLES_EVERY = 30.0
"""Seconds between two writes of the tables while a study runs."""


def run_study(
    config: StudyConfig,
    workdir: str | Path,
    progress: Progress | None = None,
    *,
    part: tuple[int, int] | None = None,
    compute: bool = True,
    profile: str = "",
) -> list[Row]:
    """Run a study in the run folder `workdir` and return the rows of its results.csv.

    The folder is made if it does not exist. A node that fails has a row whose `status` says why.

    Args:
        config: the settings of the study.
        workdir: the run folder.
        progress: prints messages and progress.
        part: (i, n) runs the i-th of n parts of the study. Tables and page are left to a later run
            of the whole study.
        compute: False reads the finished models and detections and reports those that are missing.
            Only analyses are computed.
        profile: folder for profiles of the train loops ("" for none).

    Raises:
        D3JaxError: before any work, if the config cannot be run on this data.
        StoppedError: if a signal (SIGINT, SIGTERM, SIGUSR1) stopped the study.
    """
    context = open_context(config, user_path(workdir, "workdir"), progress or Progress(), profile)
    check_sinks(context.config.loop.sinks)
    nodes = make_nodes(context)
    with jax.default_matmul_precision(PRODUCTS[context.precision]), stoppable():
        return _run(context, nodes, part, compute)


def check_study(config: StudyConfig, workdir: str | Path, profile: str = "") -> tuple[int, int]:
    """Check a study without running it; return the numbers of its models and detections.

    The first counts all of them, the second those that an earlier run has finished.
    Nothing is computed or written. Raises whatever `run_study` would raise before any work.
    """
    context = open_context(config, user_path(workdir, "workdir"), Progress(quiet=True), profile)
    check_folders(context)
    nodes = [node for node in make_nodes(context) if not node.analysis]
    return len(nodes), sum(exists(node.folder / "model") for node in nodes)


def _run(
    context: StudyContext, nodes: list[Node], part: tuple[int, int] | None, compute: bool
) -> list[Row]:
    asked = part_of(nodes, *part) if part else nodes
    groups = plan(asked, together=context.together, compute=compute)
    same_everywhere(dumps(context.config), "settings")
    if is_primary():
        _prepare_folder(context, nodes, compute)
    ledger = Ledger(context, groups)
    written = -math.inf  # write at once, because existing tables may be another study's
    for group in groups:
        if is_primary() and not part and time.monotonic() - written > TABLES_EVERY:
            write_tables(context.workdir, make_tables(RunFolder(context.workdir)))
            written = time.monotonic()
        ledger.run(group, compute)
    rows = result_rows([node.entry for node in asked], ledger.records)
    if is_primary():
        _show(context, nodes, asked, rows, ledger, part)
    return rows


def _show(
    context: StudyContext,
    nodes: Sequence[Node],
    asked: Sequence[Node],
    rows: list[Row],
    ledger: Ledger,
    part: tuple[int, int] | None,
) -> None:
    """Print a study's results; write tables and report page, unless only a part of it was run."""
    others = [node for node in nodes if node.name in ledger.records and node not in asked]
    print_table(result_rows([node.entry for node in others], ledger.records) + rows)
    for name in ("detections", "samples", "inputs"):
        found = [record.tables.get(name, []) for record in ledger.records.values()]
        print_detections([row for rows in found for row in rows])
    say = context.progress.say
    if part:
        whole = sum(not node.analysis for node in nodes)
        own = sum(not node.analysis for node in asked)
        share = f"part {part[0]} of {part[1]}: {own} of {whole} models and detections"
        say(f"{share}; when all are done, --report gathers them")
    else:
        say(f"report: {make_report(context.workdir)}")


def _prepare_folder(context: StudyContext, nodes: Sequence[Node], compute: bool) -> None:
    """Create a study's folders, and write config.yaml, environment.json and study.json."""
    config, workdir = context.config, context.workdir
    make_folders(context, nodes)
    if not compute:
        _check_same_study(context)
    there = workdir / "config.yaml"
    if there.exists() and read_text(there) != dumps(config):
        context.progress.say(
            f"{workdir} holds a study with other settings: its tables and pictures are replaced, "
            "its finished models stay"
        )
    write_manifest(workdir, make_manifest(context, nodes))  # first: it marks a run folder
    write_text(there, dumps(config))
    write_text(workdir / "environment.json", json.dumps(context.environment, indent=1))


def make_manifest(context: StudyContext, nodes: Sequence[Node]) -> Manifest:
    """Return the `Manifest` of a study, for study.json: data, attacks, evolutions and nodes."""
    info, config = context.dataset.info, context.config
    runs = {node.run.label: node.run for node in nodes}
    attacks = [
        AttackEntry(label, run.attacked, targets_of(run, info.num_classes))
        for label, run in runs.items()
        if label in {choice.label for choice in config.attacks}
    ]
    return Manifest(
        dataset=info.name,
        classes=list(info.classes),
        model=config.model.name,
        seeds=list(config.seeds),
        external=_how_read(context),
        attacks=attacks,
        evolutions=[_evolution_entry(context, choice) for choice in config.evolutions],
        nodes=[node.entry for node in _with_needs(nodes)],
    )


def _evolution_entry(context: StudyContext, choice: Choice) -> EvolutionEntry:
    config, strategy = choice.config, choice.config.strategy
    rates = update_rates(config, steps_of(config, len(fresh_split(context).labels)))
    group = repr({**vars(config), "strategy": None})
    constant, scaled = strategy.name == "constant", strategy.mean is not None
    return EvolutionEntry(choice.label, group, constant, scaled, np.asarray(rates).tolist())


def _with_needs(nodes: Sequence[Node]) -> list[Node]:
    """Return the given nodes, followed by all other nodes of the study that they need.

    The page finds the curves of first stages by the latter.
    """
    known: dict[str, Node] = {}

    def add(node: Node) -> None:
        for needed in node.needs.values():
            add(needed)
        known.setdefault(node.name, node)

    for node in nodes:
        add(node)
    asked = {node.name: node for node in nodes}
    return [*asked.values(), *(node for name, node in known.items() if name not in asked)]


def _how_read(context: StudyContext) -> str:
    """Return a text that says how a study's external model was read; "" without such a model."""
    if not context.externals:
        return ""
    info = context.dataset.info
    mean, std = (", ".join(f"{value:g}" for value in part) for part in (info.mean, info.std))
    read = "; ".join(external.text for external in context.externals.values())
    return (
        f"{read}. It sees images of {info.name}, normalised by mean ({mean}) and "
        f"standard deviation ({std}). If it was trained with other values, its accuracy here is "
        "too low."
    )


def _check_same_study(context: StudyContext) -> None:
    """Raise `ConfigError` if the config.yaml in the run folder is that of another study.

    The tables of that study would be lost.
    """
    path = context.workdir / "config.yaml"
    if not path.exists():
        return
    text = read_text(path)
    try:  # this gives settings that are newer than the file their default values
        saved = to_mapping(loads(text, registries=REGISTRIES, origin=str(path)))
    except ConfigError:
        saved = parse_yaml(text, str(path))
    if not isinstance(saved, dict):
        raise ConfigError(f"--report: {path} is damaged: it does not say which study this was")
    there, here = _settings(saved), _settings(to_mapping(context.config))
    for key in [*there, *here]:
        if there.get(key) != here.get(key):
            raise ConfigError(
                f"--report: {key} is {here.get(key, 'missing')} here and "
                f"{there.get(key, 'missing')} in {path}; report with the settings of the run, such "
                f"as --config {path}"
            )


def _settings(mapping: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a study by dotted keys, without those that affect no result."""
    neutral = ("loop", "published", "cache", "features", "paths")
    kept = {key: value for key, value in mapping.items() if key not in neutral}
    leaves = jax.tree_util.tree_leaves_with_path(kept, is_leaf=lambda leaf: leaf is None)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
