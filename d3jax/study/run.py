"""A study from config to report: poison, train, repair, evaluate, report.

Every model is a stage in a folder named by the hash of all that made it, so a rerun takes finished ones as they are,
continues the one that was cut off, and lets many defences share one attack. `cells.py` has the cells, `tasks.py` what each
computes, `planning.py` in which order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import yaml

from ..attacks import ATTACKS
from ..config.loading import dumps, loads, to_mapping
from ..config.study import StudyConfig
from ..core.errors import ConfigError
from ..data import DATASETS
from ..defenses import DEFENSES
from ..evolution.updates import EVOLUTIONS
from ..inversion import DETECTIONS
from ..models import MODELS
from ..report.page import Extras, write_report
from ..report.terminal import print_detections, print_table
from ..results.tables import write_csv
from ..runtime.distributed import is_primary, same_everywhere
from ..runtime.files import write_text
from ..runtime.progress import Progress
from .attack_run import Cell, make_cells
from .context import Lab, open_lab
from .executor import Failure, Result, Stage, read_stage, run_stages
from .extras import extras_of
from .nodes.repair import task_of
from .nodes.report_samples import Said, samples_of, say
from .planner import part_of, plan
from .rows import class_rows, detection_rows, row

REGISTRIES = {
    name: {key: cls for key, (cls, _) in registry.items()}
    for name, registry in (
        ("datasets", DATASETS),
        ("models", MODELS),
        ("attacks", ATTACKS),
        ("defenses", DEFENSES),
    )
} | {"detections": DETECTIONS, "evolutions": EVOLUTIONS}

ENDS = ("repair", "lineage", "training")
"""Kinds of cells that no other begins with."""

PRODUCTS = {"float32": "highest", "tensorfloat32": "tensorfloat32", "bfloat16": "default"}
"""jax's name for each precision. Its default for float32 on NVIDIA cards is TF32, which would be another result of one name."""


def run_study(
    config: StudyConfig,
    workdir: str | Path,
    progress: Progress | None = None,
    *,
    part: tuple[int, int] | None = None,
    compute: bool = True,
    profile: str = "",
) -> list[dict[str, Any]]:
    """Runs `config` in the folder `workdir` (made if need be) and returns the rows of its results.csv.

    `part` (i, n) runs the i-th of n shares of the cells and leaves tables and report to a later run of the whole; without
    `compute` that run takes what is finished and says what is not. A cell that fails is a row that says so. Raises
    `D3JaxError` before any work where the config cannot be run on this data.
    """
    lab = open_lab(config, Path(workdir), progress or Progress(), profile)
    with jax.default_matmul_precision(PRODUCTS[lab.precision]):
        return _run_study(lab, part, compute)


def check_study(config: StudyConfig, workdir: str | Path) -> int:
    """The number of cells of `config`, nothing computed or written. Raises whatever `run_study` would raise before any work."""
    return len(make_cells(open_lab(config, Path(workdir), Progress(quiet=True))))


def _run_study(lab: Lab, part: tuple[int, int] | None, compute: bool) -> list[dict[str, Any]]:
    config = lab.config
    everything = make_cells(lab)
    cells = part_of(everything, *part) if part else everything
    same_everywhere(dumps(config), "settings")
    if is_primary():
        for setting, folder in (
            ("--workdir", lab.workdir),
            ("--cache", config.cache),
            ("--profile", lab.recorder.profile),
        ):
            _make_folder(setting, folder)
        if not compute:
            _check_same_study(lab)
        there = lab.workdir / "config.yaml"
        if there.exists() and there.read_text(encoding="utf8") != dumps(config):
            said = "holds a study with other settings: its tables and pictures are replaced, its finished models stay"
            lab.recorder.progress.say(f"{lab.workdir} {said}")
        write_text(there, dumps(config))
        write_text(lab.workdir / "environment.json", json.dumps(lab.recorder.environment, indent=1))
    results: dict[str, Result] = {}
    earlier: dict[str, Stage] = {}
    said: dict[str, Said] = {}
    repaired: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for group in plan(lab, cells, compute):
        done = run_group(lab, group, earlier, results, compute)
        for cell, result in zip(group, done, strict=True):
            if isinstance(result, Stage):
                earlier |= {cell.name: result} if cell.kind not in ENDS else {}
                if (
                    not part
                    and cell.case.seed == config.seeds[0]
                    and cell.kind in ("model", "repair", "training")
                ):
                    variables = result.tree if cell.kind == "repair" else result.tree.variables
                    said[cell.name] = say(lab, cell, earlier, variables)
                    if config.paths and cell.kind == "repair":
                        repaired[cell.name] = jax.device_get(variables)
                # A study of many wide models would fill the device with them.
                kept = {"inversion": lambda tree: tree, "training": lambda tree: tree.found}.get(
                    cell.kind, lambda tree: None
                )
                result = result._replace(tree=jax.device_get(kept(result.tree)))
            results[cell.name] = result
        rows = [
            row(lab, cell, results)
            for cell in cells
            if cell.name in results and _is_row(cell, results)
        ]
        looked = detection_rows(lab, cells, results)
        if is_primary() and not part:
            write_csv(lab.workdir / "results.csv", rows)
            write_csv(lab.workdir / "per_class.csv", class_rows(lab, cells, results), columns=())
            if config.detections:
                write_csv(lab.workdir / "detections.csv", looked, columns=())
    extras, features = (
        extras_of(lab, cells, rows, looked, results, earlier, repaired)
        if not part
        else (Extras(looked), {})
    )
    if is_primary():
        print_table(
            [row(lab, cell, results) for cell in _models_of_others(cells) if cell.name in results]
            + rows
        )
        print_detections(looked)
    if is_primary() and part:
        share = f"part {part[0]} of {part[1]}: {len(cells)} of {len(everything)} cells"
        lab.recorder.progress.say(f"{share}; when all are done, --report gathers them")
    if is_primary() and not part:
        samples = samples_of(lab, cells, results, earlier, said, features)
        page = write_report(lab.workdir, rows, samples, lab.workdir.name, extras)
        lab.recorder.progress.say(f"report: {page}")
    return rows


def _is_row(cell: Cell, results: dict[str, Result]) -> bool:
    """Whether a cell has a line in results.csv: all have but detections, unless one failed."""
    return cell.kind != "inversion" or isinstance(results[cell.name], Failure)


def _models_of_others(cells: Sequence[Cell]) -> list[Cell]:
    """The backdoored models that repairs and lineages in `cells` began with and that are not among them, as in a part of a study."""
    mine = {(cell.case.label, cell.case.seed) for cell in cells if cell.kind == "model"}
    used = {
        (cell.case.label, cell.case.seed): Cell(cell.case) for cell in cells if cell.kind in ENDS
    }
    return [model for key, model in used.items() if key not in mine]


def _make_folder(setting: str, folder: str | Path) -> None:
    """Makes a folder that a setting names; "" is none."""
    try:
        if folder != "":
            Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{setting}: {folder} cannot be made ({error.strerror})") from error


def _check_same_study(lab: Lab) -> None:
    """Raises `ConfigError` where the run folder's config.yaml is another study's: its tables would be lost, and nothing found."""
    path = lab.workdir / "config.yaml"
    if not path.exists():
        return
    text = path.read_text(encoding="utf8")
    try:
        saved = to_mapping(
            loads(text, registries=REGISTRIES, origin=str(path))
        )  # with today's defaults for what came since
    except ConfigError:
        saved = yaml.safe_load(text)
    there, here = _settings(saved), _settings(to_mapping(lab.config))
    for key in [*there, *here]:
        if there.get(key) != here.get(key):
            raise ConfigError(
                f"--report: {key} is {here.get(key, 'missing')} here and {there.get(key, 'missing')} in {path}; "
                f"report with the settings of the run, such as --config {path}"
            )


def _settings(mapping: dict[str, Any]) -> dict[str, Any]:
    """A study's settings by their dotted keys, without those that no result depends on."""
    kept = {
        key: value
        for key, value in mapping.items()
        if key not in ("loop", "published", "cache", "features", "paths")
    }
    leaves = jax.tree_util.tree_leaves_with_path(kept, is_leaf=lambda leaf: leaf is None)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def run_group(
    lab: Lab,
    group: Sequence[Cell],
    earlier: dict[str, Stage],
    results: dict[str, Result],
    compute: bool,
) -> list[Result]:
    """The results of cells that run together; one fails, or is unfinished, as what it needs did or is."""
    broken = lambda cell: [
        needed for needed in cell.needs if isinstance(results.get(needed.name), Failure)
    ]
    orphans = {cell.name: broken(cell)[0] for cell in group if broken(cell)}
    tasks = [task_of(lab, cell, earlier) for cell in group if cell.name not in orphans]
    if compute:
        done = run_stages(tasks, lab.recorder)
    else:
        done = [read_stage(task, lab.recorder) for task in tasks]
    found: dict[str, Result] = dict(zip((task.name for task in tasks), done, strict=True))
    for name, needed in orphans.items():
        unfinished = results[needed.name].unfinished
        kind = (
            needed.kind
            if needed.kind != "model"
            else "model"
            if lab.suspect
            else "backdoored model"
            if needed.case.attacked
            else "clean model"
        )
        found[name] = Failure(
            f"its {kind} {'is not finished' if unfinished else 'failed'}", unfinished
        )
    return [found[cell.name] for cell in group]
