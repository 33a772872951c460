"""What each cell of a study computes, and in which folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .base import Prepared, Variables, stream
from .cells import Cell, Lab, reserved_split
from .config_file import to_mapping
from .metrics import Counts
from .stages import Stage, Task, recipe_hash
from .training.backdoor import backdoor_job, prepare, trigger_of
from .training.loop import lines_of


class Victim(NamedTuple):
    """A backdoored model and its trigger."""

    variables: Variables
    trigger: Any


def task_of(lab: Lab, cell: Cell, earlier: Mapping[str, Stage]) -> Task:
    """What computes `cell`. Its loop needs what the cell needs among the `earlier` finished stages, its result's name only the case."""
    begins_with = earlier.get(cell.needs.name) if cell.needs else None
    if cell.choice:
        return _repair_task(lab, cell, begins_with)
    return (_trigger_task if cell.prepares else _victim_task)(lab, cell, begins_with)


def _cache(lab: Lab) -> Path:
    return Path(lab.config.cache).expanduser() if lab.config.cache else lab.workdir / "checkpoints"


def _trigger_task(lab: Lab, cell: Cell, surrogate: Stage | None) -> Task:
    """What the attack computes before the training, kept in the cache. Where no clean model is used, any architecture shares it."""
    case, info, root = cell.case, lab.dataset.info, jax.random.key(cell.case.attack_seed)
    preparation = case.attack.preparation
    unused = () if preparation.surrogate else ("model", "net", "train")
    recipe = {key: value for key, value in case.recipe.items() if key not in unused}
    images = jax.ShapeDtypeStruct((case.poisoned, *info.shape), jnp.uint8) if preparation.replaces else None
    clean = lambda: surrogate.tree.variables if preparation.surrogate else None
    return Task(
        cell.name,
        _cache(lab) / f"{info.name}-{case.label}-trigger-{recipe_hash(recipe)}",
        like=Prepared(jax.eval_shape(case.attack.init, root), images),
        evaluate=lambda prepared: Counts(*([np.zeros(0, np.int32)] * 5)),
        work=lambda session: prepare(root, lab.model, clean(), lab.dataset, case.attack, session),
    )


def _victim_task(lab: Lab, cell: Cell, prepared: Stage | None) -> Task:
    """The backdoored model: trained on the set that the attack poisons, kept in the cache."""
    case, info, root = cell.case, lab.dataset.info, jax.random.key(cell.case.attack_seed)
    given = prepared and prepared.tree
    return Task(
        cell.name,
        _cache(lab) / f"{info.name}-{lab.config.model.name}-{case.label}-{recipe_hash(case.recipe)}",
        like=jax.eval_shape(lambda: Victim(lab.model.init(root), case.attack.init(root))),
        evaluate=lambda victim: case.evaluate(victim.variables, victim.trigger, lab.dataset.test),
        job=lambda: backdoor_job(root, lab.model, lab.dataset, case.attack, lab.config.train, given, streamed=lab.streamed),
        result=lambda job, state: Victim(state.variables, trigger_of(job, state)),
    )


def _repair_task(lab: Lab, cell: Cell, victim: Stage | None) -> Task:
    """What the defence makes of the victim with the reserved images of the case's seed, counted under the same trigger."""
    case, choice, defense = cell.case, cell.choice, cell.defense
    key = stream(jax.random.key(case.seed), "repair")
    evaluate = lambda variables: case.evaluate(variables, victim.tree.trigger, lab.dataset.test)
    given = lambda: (key, lab.model, victim.tree.variables, reserved_split(lab, case.seed))

    def work(session):
        repaired = defense.repair(*given(), session)
        return repaired.variables, lines_of(repaired.trace)

    def watch(variables):
        counts = evaluate(variables)
        return {"watch_acc": counts.acc} | ({"watch_asr": counts.asr} if counts.triggered.sum() else {})

    recipe = {
        "victim": case.recipe, "defense": choice.name, "settings": to_mapping(choice.config),
        "seed": case.seed, "reserved": to_mapping(lab.config.reserved),
    }  # fmt: skip
    return Task(
        cell.name,
        lab.workdir / "checkpoints" / f"{case.label}-{choice.label}-seed{case.seed}-{recipe_hash(recipe)}",
        like=jax.eval_shape(lab.model.init, key),
        evaluate=evaluate,
        job=(lambda: defense.job(*given())) if defense.job else None,
        work=work,
        watch=watch,
        watch_every=lab.config.loop.watch_every,
    )
