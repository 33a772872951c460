"""The lines of a study's tables: results.csv, detections.csv, per_class.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.loading import to_mapping
from ..inversion import detect
from ..metrics.attack_success import der
from ..results.tables import NUMBERS
from .attack_run import Cell
from .context import Lab
from .executor import Result, Stage
from .nodes.forgetting import survival
from .nodes.repair import found_of
from .nodes.report_samples import targets_of
from .nodes.training_time import filter_columns, flags_of


def row(lab: Lab, cell: Cell, results: Mapping[str, Result]) -> dict[str, Any]:
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
            began = results.get(Cell(case).name)
            values |= survival(
                result.lines, began.counts.asr if began else math.inf
            )  # a part of a study may lack it
        if cell.kind == "training":
            values |= filter_columns(flags_of(lab, case), result.tree)
            values["seconds"] += results[
                cell.needs[-1].name
            ].seconds  # its first stage is part of it
        if found := found_of(cell, results):
            values |= {
                "target": found.target, "chosen": found.how, "trigger_success": found.success,
                "anomaly_index": found.detection.anomaly if found.detection else None,
                "search_seconds": sum(results[needed.name].seconds for needed in cell.needs[1:]),
            }  # fmt: skip
    values |= {
        "attack_seed": case.attack_seed, "classes": lab.dataset.info.num_classes,
        "net": " ".join(f"{key}={value}" for key, value in to_mapping(config.model.config).items()),
        "status": "ok" if isinstance(result, Stage) else result.status,
        "published": config.published.get(f"{case.label}/{cell.label}", "none"),
    }  # fmt: skip
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


def detection_rows(
    lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result]
) -> list[dict[str, Any]]:
    """The lines of detections.csv: what every detection of the config says of every class."""
    rows = []
    for cell in cells:
        result = results.get(cell.name)
        if cell.kind == "inversion" and isinstance(result, Stage):
            tree, case = result.tree, cell.case
            found = detect(tree.norms)
            wanted = (
                targets_of(case.attack, lab.dataset.info.num_classes) if case.attacked else set()
            )
            unknown = lab.suspect is not None and not case.attacked
            for i, label in enumerate(tree.labels.tolist()):
                rows.append({
                    "dataset": lab.dataset.info.name, "model": lab.config.model.name, "attack": case.label, "seed": case.seed,
                    "detection": cell.choice.label, "class": lab.dataset.info.classes[label], "is_target": None if unknown else label in wanted,
                    "flagged": bool(found.flagged[i]), "norm": float(tree.norms[i]), "index": float(found.index[i]),
                    "success": float(tree.success[i]), "passes": int(tree.passes[i]), "seconds": result.seconds,
                })  # fmt: skip
    return rows


def class_rows(
    lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result]
) -> list[dict[str, Any]]:
    """The lines of per_class.csv: the counts of every true class."""
    rows = []
    for cell in cells:
        result = results.get(cell.name)
        if isinstance(result, Stage) and cell.kind != "inversion":
            where = {"attack": cell.case.label, "defense": cell.label, "seed": cell.case.seed}
            counts = {key: values.tolist() for key, values in result.counts._asdict().items()}
            for i, name in enumerate(lab.dataset.info.classes):
                rows.append(
                    where | {"class": name} | {key: values[i] for key, values in counts.items()}
                )
    return rows
