"""A study from config to report: poison, train, repair, evaluate, report.

Every model is a stage in a folder named by the hash of all that made it, so a rerun takes finished ones as they are,
continues the one that was cut off, and lets many defences share one attack. `cells.py` has the cells, `tasks.py` what each
computes, `planning.py` in which order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from .attacks import ATTACKS
from .cells import Cell, Lab, make_cells, open_lab
from .config import StudyConfig
from .config_file import dumps, loads, to_mapping
from .data import DATASETS
from .defenses import DEFENSES
from .errors import ConfigError
from .evolution import EVOLUTIONS
from .evolution_page import Lineages
from .exhibits import Said, samples_of, say, targets_of
from .inversion import DETECTIONS, detect
from .journal import Progress
from .lineage_rows import control_rates, lineage_rows, predictions, shown_evolutions, survival
from .lines import lines_of
from .metrics import der
from .models import MODELS
from .page import write_report
from .planning import part_of, plan
from .report import NUMBERS, print_detections, print_table, write_csv, write_whole
from .sharding import is_first, same_everywhere
from .stages import Failure, Result, Stage, read_stage, run_stages
from .survival import compare
from .tasks import found_of, task_of
from .untrusted import filter_columns, filter_rows, filters_of, flags_of

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
    return len(make_cells(open_lab(config, Path(workdir), Progress())))


def _run_study(lab: Lab, part: tuple[int, int] | None, compute: bool) -> list[dict[str, Any]]:
    config = lab.config
    everything = make_cells(lab)
    cells = part_of(everything, *part) if part else everything
    same_everywhere(dumps(config), "settings")
    if is_first():
        for setting, folder in (("--workdir", lab.workdir), ("--cache", config.cache), ("--profile", lab.recorder.profile)):
            _make_folder(setting, folder)
        if not compute:
            _check_same_study(lab)
        write_whole(lab.workdir / "config.yaml", dumps(config))
        write_whole(lab.workdir / "environment.json", json.dumps(lab.recorder.environment, indent=1))
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
                if not part and cell.case.seed == config.seeds[0] and cell.kind in ("model", "repair", "training"):
                    variables = result.tree if cell.kind == "repair" else result.tree.variables
                    said[cell.name] = say(lab, cell, earlier, variables)
                    if config.paths and cell.kind == "repair":
                        repaired[cell.name] = jax.device_get(variables)
                # A study of many wide models would fill the device with them.
                kept = {"inversion": lambda tree: tree, "training": lambda tree: tree.found}.get(cell.kind, lambda tree: None)
                result = result._replace(tree=jax.device_get(kept(result.tree)))
            results[cell.name] = result
        rows = [row(lab, cell, results) for cell in cells if cell.name in results and _is_row(cell, results)]
        looked = detection_rows(lab, cells, results)
        if is_first() and not part:
            write_csv(lab.workdir / "results.csv", rows)
            write_csv(lab.workdir / "per_class.csv", class_rows(lab, cells, results), columns=())
            if config.detections:
                write_csv(lab.workdir / "detections.csv", looked, columns=())
    filters = filters_of(lab, cells, results) if not part else []
    filtered = filter_rows(filters)
    if is_first() and filters:
        write_csv(lab.workdir / "filters.csv", filtered, columns=())
    evolved = lineage_rows(lab, cells, results, _controls(lab, cells, results, earlier)) if not part else []
    shown = shown_evolutions(lab)
    compared = compare(rows, evolved, shown)
    if is_first() and evolved:
        write_csv(lab.workdir / "evolution.csv", evolved, columns=())
        write_csv(lab.workdir / "survival.csv", compared, columns=())
    if is_first():
        print_table([row(lab, cell, results) for cell in _models_of_others(cells)] + rows)
        print_detections(looked)
    if is_first() and part:
        share = f"part {part[0]} of {part[1]}: {len(cells)} of {len(everything)} cells"
        lab.recorder.progress.say(f"{share}; when all are done, --report gathers them")
    if is_first() and not part:
        samples = samples_of(lab, cells, results, earlier, said)
        lineages = Lineages(evolved, compared, shown, predictions(lab, cells, results, earlier))
        page = write_report(
            lab.workdir,
            rows,
            samples,
            lab.workdir.name,
            looked,
            lineages,
            filters,
            filtered,
            lines_of(lab, cells, earlier, repaired),
        )
        lab.recorder.progress.say(f"report: {page}")
    return rows


def _controls(
    lab: Lab, cells: Sequence[Cell], results: dict[str, Result], earlier: dict[str, Stage]
) -> dict[str, dict[int, float]]:
    """What an attack's trigger does to the control, the lineage of `clean` that evolves alike, at every update; {} without one."""
    labels = lab.dataset.train.labels
    attacked = {cell.case.label: bool(np.any(cell.case.attack.eligible(labels))) for cell in cells}
    clean = {(cell.label, cell.case.seed): cell for cell in cells if cell.kind == "lineage" and not attacked[cell.case.label]}
    found = {}
    for cell in cells:
        control = clean.get((cell.label, cell.case.seed))
        if cell.kind == "lineage" and attacked[cell.case.label] and control and isinstance(results.get(control.name), Stage):
            model = earlier.get(Cell(cell.case).name)
            if model:
                found[cell.name] = control_rates(lab, cell, task_of(lab, control, {}).folder, model.tree.trigger)
    return found


def _is_row(cell: Cell, results: dict[str, Result]) -> bool:
    """Whether a cell has a line in results.csv: all have but detections, unless one failed."""
    return cell.kind != "inversion" or isinstance(results[cell.name], Failure)


def _models_of_others(cells: Sequence[Cell]) -> list[Cell]:
    """The backdoored models that repairs and lineages in `cells` began with and that are not among them, as in a part of a study."""
    mine = {(cell.case.label, cell.case.seed) for cell in cells if cell.kind == "model"}
    used = {(cell.case.label, cell.case.seed): Cell(cell.case) for cell in cells if cell.kind in ENDS}
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
        saved = to_mapping(loads(text, registries=REGISTRIES, origin=str(path)))  # with today's defaults for what came since
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
    kept = {key: value for key, value in mapping.items() if key not in ("loop", "published", "cache", "features", "paths")}
    leaves = jax.tree_util.tree_leaves_with_path(kept, is_leaf=lambda leaf: leaf is None)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def run_group(
    lab: Lab, group: Sequence[Cell], earlier: dict[str, Stage], results: dict[str, Result], compute: bool
) -> list[Result]:
    """The results of cells that run together; one fails, or is unfinished, as what it needs did or is."""
    broken = lambda cell: [needed for needed in cell.needs if isinstance(results.get(needed.name), Failure)]
    orphans = {cell.name: broken(cell)[0] for cell in group if broken(cell)}
    tasks = [task_of(lab, cell, earlier) for cell in group if cell.name not in orphans]
    if compute:
        done = run_stages(tasks, lab.recorder)
    else:
        done = [read_stage(task, lab.recorder) for task in tasks]
    found: dict[str, Result] = dict(zip((task.name for task in tasks), done, strict=True))
    for name, needed in orphans.items():
        unfinished = results[needed.name].unfinished
        kind = needed.kind if needed.kind != "model" else "backdoored model" if needed.case.poison_rate else "clean model"
        found[name] = Failure(f"its {kind} {'is not finished' if unfinished else 'failed'}", unfinished)
    return [found[cell.name] for cell in group]


def row(lab: Lab, cell: Cell, results: dict[str, Result]) -> dict[str, Any]:
    """The line of results.csv for one cell; numbers are None where it failed."""
    config, case, result = lab.config, cell.case, results[cell.name]
    values = dict.fromkeys(("dataset", "model", "attack", "poison_rate", "defense", "seed", *NUMBERS)) | {
        "dataset": lab.dataset.info.name, "model": config.model.name, "attack": case.label,
        "poison_rate": case.poison_rate, "defense": cell.label, "seed": case.seed,
    }  # fmt: skip
    if isinstance(result, Stage):
        counts, last = result.counts, result.lines[-1] if result.lines else {}
        after = cell.kind in ("repair", "training")
        effect = der(results[Cell(case).name].counts, counts) if after else math.nan
        values |= {
            "acc": counts.acc, "asr": counts.asr, "ra": counts.ra, "der": effect,
            "n_clean": int(counts.clean.sum()), "n_triggered": int(counts.triggered.sum()), "seconds": result.seconds,
            "acc_non_target": counts.acc_non_target, "members": result.members, "cosine": last.get("cosine"), "distance_ratio": last.get("distance_ratio"),
            "commit": result.environment["commit"], "device": result.environment["device"],
        }  # fmt: skip
        if cell.kind == "lineage":
            values |= survival(result.lines)
        if cell.kind == "training":
            values |= filter_columns(flags_of(lab, case), result.tree)
            values["seconds"] += results[cell.needs[-1].name].seconds  # its first stage is part of it
        if found := found_of(cell, results):
            values |= {
                "target": found.target, "chosen": found.how, "trigger_success": found.success,
                "anomaly_index": found.detection.anomaly if found.detection else None,
                "search_seconds": sum(results[needed.name].seconds for needed in cell.needs[1:]),
            }  # fmt: skip
    values |= {
        "attack_seed": case.attack_seed,
        "net": " ".join(f"{key}={value}" for key, value in to_mapping(config.model.config).items()),
        "status": "ok" if isinstance(result, Stage) else result.status,
        "published": config.published.get(f"{case.label}/{cell.label}", "none"),
    }
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def detection_rows(lab: Lab, cells: Sequence[Cell], results: dict[str, Result]) -> list[dict[str, Any]]:
    """The lines of detections.csv: what every detection of the config says of every class."""
    rows = []
    for cell in cells:
        result = results.get(cell.name)
        if cell.kind == "inversion" and isinstance(result, Stage):
            tree, case = result.tree, cell.case
            found = detect(tree.norms)
            wanted = targets_of(case.attack, lab.dataset.info.num_classes) if case.poison_rate else set()
            for i, label in enumerate(tree.labels.tolist()):
                rows.append({
                    "dataset": lab.dataset.info.name, "model": lab.config.model.name, "attack": case.label, "seed": case.seed,
                    "detection": cell.choice.label, "class": lab.dataset.info.classes[label], "is_target": label in wanted,
                    "flagged": bool(found.flagged[i]), "norm": float(tree.norms[i]), "index": float(found.index[i]),
                    "success": float(tree.success[i]), "passes": int(tree.passes[i]), "seconds": result.seconds,
                })  # fmt: skip
    return rows


def class_rows(lab: Lab, cells: Sequence[Cell], results: dict[str, Result]) -> list[dict[str, Any]]:
    """The lines of per_class.csv: the counts of every true class."""
    rows = []
    for cell in cells:
        result = results.get(cell.name)
        if isinstance(result, Stage) and cell.kind != "inversion":
            where = {"attack": cell.case.label, "defense": cell.label, "seed": cell.case.seed}
            counts = {key: values.tolist() for key, values in result.counts._asdict().items()}
            for i, name in enumerate(lab.dataset.info.classes):
                rows.append(where | {"class": name} | {key: values[i] for key, values in counts.items()})
    return rows
