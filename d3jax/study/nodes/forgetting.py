"""What the lineages of a study found: the rows of evolution.csv, survivability, and the linear prediction beside what was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.features import penultimate
from ...analysis.forgetting import moment, retained, spectrum
from ...core.images import as_float, as_levels
from ...data.drift import compose
from ...evolution.survivability import survivability
from ...evolution.updates import update_rates
from ...results.survival import TAUS, Predicted, Shown
from ...runtime import checkpoint
from ...runtime.files import write_text
from ...training.loop import LogRecord
from ..attack_run import Cell
from ..context import Lab
from ..executor import Result, Stage
from .evolution import asr_of, fresh_sets, measured, per_update, strengths
from .report_samples import targets_of

PREDICTED_FROM = 1000
"""Images of each update behind its second moment, and test images behind the trigger's direction."""


WIDEST = 1024
"""Features up to which second moments are decomposed: twice for each update of every lineage, which takes hours for 4096."""


def control_rates(lab: Lab, cell: Cell, folder: Path, name: str, trigger: Any) -> dict[int, float]:
    """How often the control's model says the attacker's class for triggered images, by update, as far as its models are there.

    They lie in the control's `folder`; there the rates are kept too, under the `name` of the attack's lineage, which says all that they follow from.
    """
    config, kept = cell.choice.config, folder / "controls" / f"{name}.json"
    alone = jax.process_count() == 1  # several processes compute together or not at all
    if alone and kept.is_file():
        return {int(update): rate for update, rate in json.loads(kept.read_text()).items()}
    asr = asr_of(lab, cell.case.attack, config)
    like = jax.eval_shape(lab.model.init, jax.random.key(0))
    found = {}
    for update in range(1, config.updates + 1):
        path = folder / "updates" / str(update)
        if path.is_dir():
            variables, _ = checkpoint.load(path, like)
            found[update] = asr(
                variables, trigger, measured(lab, config, update), strengths(config, update)
            )
    if alone and len(found) == config.updates:
        write_text(kept, json.dumps(found))
    return found


def lineage_rows(
    lab: Lab,
    cells: Sequence[Cell],
    results: Mapping[str, Result],
    controls: Mapping[str, Mapping[int, float]],
) -> list[dict[str, Any]]:
    """The lines of evolution.csv: every lineage at every update, on the test images that are measured, drifted as far as at that update.

    Update 0 is the model that it began with, on all test images as they are; its `score` alone is that on the first update's images.
    `stale_…` is the model before the update on the images behind `acc`, `asr` and `score`.
    """
    rows = []
    for cell in cells:
        result, model = results.get(cell.name), results.get(Cell(cell.case).name)
        if cell.kind != "lineage" or not (isinstance(result, Stage) and isinstance(model, Stage)):
            continue
        where = {"attack": cell.case.label, "evolution": cell.label, "seed": cell.case.seed}
        none = lambda value: None if value is None or np.isnan(value) else value
        updates = updates_of(result.lines)
        start = {
            "update": 0,
            "acc": model.counts.acc,
            "asr": none(model.counts.asr),
            "ra": none(model.counts.ra),
        }
        start |= dict.fromkeys(
            ("stale_acc", "valid_acc", "control", "trained_acc", "trained_asr", "moved", "lr_sum")
        )
        start |= {
            "score": updates[0].get("first_score") if updates else None,
            "stale_asr": None,
            "stale_score": None,
        }
        rows.append(where | start)
        stale: LogRecord = {}
        for line in updates:
            stale |= {
                name: line[f"first_{name}"]
                for name in ("acc", "asr", "score")
                if f"first_{name}" in line
            }
            rows.append(where | {
                "update": int(line["update"]), "acc": line["watch_acc"], "asr": line.get("watch_asr"), "ra": line.get("watch_ra"),
                "stale_acc": stale.get("acc"), "valid_acc": line.get("valid_acc"),
                "control": controls.get(cell.name, {}).get(int(line["update"])),
                "trained_acc": line.get("trained_acc"), "trained_asr": line.get("trained_asr"),
                "moved": line["moved"], "lr_sum": line["lr_sum"], "score": line.get("score"),
                "stale_asr": stale.get("asr"), "stale_score": stale.get("score"),
            })  # fmt: skip
            stale = {name: line.get(f"next_{name}") for name in ("acc", "asr", "score")}
    return rows


def updates_of(lines: Sequence[LogRecord]) -> list[LogRecord]:
    """The logged lines that end an update."""
    return [line for line in lines if "update" in line]


def survival(lines: Sequence[LogRecord], began: float) -> dict[str, Any]:
    """S_τ of a lineage as columns of results.csv, and whether each is censored; none without a trigger. Where the ASR that it `began`
    with is below τ there was nothing to survive: None."""
    asr = [line["watch_asr"] for line in updates_of(lines) if "watch_asr" in line]
    if not asr:
        return {}
    values = {}
    for tau in TAUS:
        count, censored = survivability(asr, tau)
        there = began >= tau
        values |= {
            f"survived_{tau:g}": count if there else None,
            f"survived_{tau:g}_censored": censored if there else None,
        }
    return values


def shown_evolutions(lab: Lab) -> dict[str, Shown]:
    """What the report must know of every evolution, by its label. Those of one `group` differ in their learning rates alone."""
    found = {}
    for choice in lab.config.evolutions:
        config = choice.config
        others = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if field.name != "strategy"
        }
        shape = update_rates(config, per_update(lab, config))
        found[choice.label] = Shown(
            shape,
            repr(others),
            config.strategy.name == "constant",
            config.strategy.mean is not None,
        )
    return found


def predictions(
    lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result], earlier: Mapping[str, Stage]
) -> list[Predicted]:
    """For the lineages of the first seed whose attack has one target: what a linear model says of its forgetting, under both
    curvatures. Lineages whose updates see the trigger, are defended or carry their momentum have none, nor those whose trigger
    drifts with the image, nor nets of more than `WIDEST` features."""
    found = []
    directions: dict[str, np.ndarray] = {}
    moments: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
    for cell in cells:
        case, model, result = cell.case, earlier.get(Cell(cell.case).name), results.get(cell.name)
        wanted = targets_of(case.attack, lab.dataset.info.num_classes)
        if (
            cell.kind != "lineage"
            or cell.defense
            or case.seed != lab.config.seeds[0]
            or len(wanted) != 1
        ):
            continue
        if not (model and isinstance(result, Stage) and case.attacked):
            continue
        config, victim = cell.choice.config, model.tree
        if (
            config.persistent
            or config.replay
            or config.trigger_first
            or config.optimizer_state == "carried"
        ):
            continue
        if case.label not in directions:
            directions[case.label] = _direction(lab, cell, victim)
        if len(directions[case.label]) > WIDEST:
            continue
        alike = (
            case.label,
            repr((config.drift, config.updates, config.validation, config.label_shift)),
        )
        if alike not in moments:
            moments[alike] = _moments(lab, cell, victim, *wanted)
        d, steps = directions[case.label], update_rates(config, per_update(lab, config))
        lines = updates_of(result.lines)
        scores = [lines[0]["first_score"], *(line["score"] for line in lines)]
        left = {
            name: retained(d, seconds, steps, config.momentum, config.weight_decay)
            for name, seconds in moments[alike].items()
        }
        values, shares = spectrum(d, moments[alike]["squared"][0])
        found.append(Predicted(case.label, cell.label, values, shares, np.array(scores), left))
    return found


def _direction(lab: Lab, cell: Cell, victim: Any) -> np.ndarray:
    """The mean [D] by which the trigger moves the backdoored model's features."""
    attack, (images, labels) = cell.case.attack, lab.dataset.test
    rows = np.flatnonzero(np.asarray(attack.relabel(labels) != labels))[:PREDICTED_FROM]
    stamped = as_levels(attack.stamp(victim.trigger, as_float(images[rows]))).astype(jnp.uint8)
    clean, triggered = (
        penultimate(lab.model, victim.variables, x) for x in (images[rows], stamped)
    )
    return (triggered - clean).mean(0, dtype=np.float64)


def _moments(lab: Lab, cell: Cell, victim: Any, target: int) -> dict[str, list[np.ndarray]]:
    """The second moment of every update's drifted images in the backdoored model's features, for both curvatures."""
    config, info = cell.choice.config, lab.dataset.info
    drift, found = compose(tuple(config.drift), info.shape[2]), {"squared": [], "softmax": []}
    for update, rows in enumerate(fresh_sets(lab, cell)[0], 1):
        images = as_float(jnp.asarray(lab.fresh.images[rows[:PREDICTED_FROM]]))
        keys = jax.random.split(jax.random.key(update), len(images))
        drifted = as_levels(drift(keys, images, strengths(config, update))).astype(jnp.uint8)
        features = penultimate(lab.model, victim.variables, drifted)
        odds = np.concatenate([
            np.asarray(jax.nn.softmax(lab.model.apply(victim.variables, as_float(drifted[i : i + 500]), train=False).logits)[:, target])
            for i in range(0, len(drifted), 500)
        ])  # fmt: skip
        found["squared"].append(moment(features))
        found["softmax"].append(moment(features, odds * (1 - odds)))
    return found
