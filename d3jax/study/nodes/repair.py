"""What each cell of a study computes, and in which folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...config.loading import to_mapping
from ...core.random import stream
from ...core.types import Prepared, Repaired, Variables
from ...defenses.repair.target import Found, flagged_label, gather
from ...inversion import invert, like, nothing
from ...metrics.attack_success import Counts
from ...runtime.distributed import broadcast_from_host0
from ...training.loop import lines_of
from ...training.scan import whole_calls
from ...training.victim import prepare, trigger_of, victim_loop
from ..attack_run import Case, Cell
from ..context import Lab, reserved_split
from ..executor import Stage, Task, recipe_hash
from ..external_model import trigger_for
from . import evolution as lineages
from . import training_time as untrusted


class Victim(NamedTuple):
    """A backdoored model and its trigger."""

    variables: Variables
    trigger: Any


def task_of(lab: Lab, cell: Cell, earlier: Mapping[str, Stage]) -> Task:
    """What computes `cell`. Its loop needs what the cell needs among the `earlier` finished stages, its result's name only the case."""
    make = {
        "trigger": _trigger_task,
        "model": _victim_task,
        "inversion": _inversion_task,
        "repair": _repair_task,
        "lineage": _lineage_task,
        "beginning": _beginning_task,
        "training": _training_task,
    }[cell.kind]
    return make(lab, cell, *(earlier.get(needed.name) for needed in cell.needs))


def _cache(lab: Lab) -> Path:
    return Path(lab.config.cache).expanduser() if lab.config.cache else lab.workdir / "checkpoints"


def _trigger_task(lab: Lab, cell: Cell, surrogate: Stage | None = None) -> Task:
    """What the attack computes before the training, kept in the cache. Where no clean model is used, any architecture shares it."""
    case, info, root = cell.case, lab.dataset.info, jax.random.key(cell.case.attack_seed)
    preparation = case.attack.preparation
    unused = () if preparation.surrogate else ("model", "net", "train")
    recipe = {key: value for key, value in case.recipe.items() if key not in unused}
    images = (
        jax.ShapeDtypeStruct((case.poisoned, *info.shape), jnp.uint8)
        if preparation.replaces
        else None
    )
    clean = lambda: surrogate.tree.variables if preparation.surrogate else None
    return Task(
        cell.name,
        _cache(lab) / f"{info.name}-{case.label}-trigger-{recipe_hash(recipe)}",
        like=Prepared(jax.eval_shape(case.attack.init, root), images),
        evaluate=_count_nothing,
        work=lambda hooks: prepare(root, lab.model, clean(), lab.dataset, case.attack, hooks),
    )


def _victim_task(lab: Lab, cell: Cell, prepared: Stage | None = None) -> Task:
    """The backdoored model: trained on the set that the attack poisons, or read; kept in the cache."""
    case, info, root = cell.case, lab.dataset.info, jax.random.key(cell.case.attack_seed)
    given = prepared and prepared.tree
    if lab.suspect:
        trigger = trigger_for(lab.suspect, case.attack, case.recipe, root)
        work = lambda hooks: (Victim(lab.suspect.variables, trigger), [])
    return Task(
        cell.name,
        _cache(lab)
        / f"{info.name}-{lab.config.model.name}-{case.label}-{recipe_hash(case.recipe)}",
        like=jax.eval_shape(lambda: Victim(lab.model.init(root), case.attack.init(root))),
        evaluate=lambda victim: case.evaluate(victim.variables, victim.trigger, lab.dataset.test),
        loop=None
        if lab.suspect
        else lambda: victim_loop(
            root,
            lab.model,
            lab.dataset,
            case.attack,
            lab.config.train,
            given,
            streamed=lab.streamed,
        ),
        work=work if lab.suspect else None,
        result=lambda loop, state: Victim(state.variables, trigger_of(loop, state)),
        about={key: case.recipe[key] for key in ("attack", "settings")},
    )


def _inversion_task(
    lab: Lab, cell: Cell, victim: Stage | None, detected: Stage | None = None
) -> Task:
    """The inversion of all classes of the victim, or of one, with the reserved images of the case's seed; kept in the cache."""
    case, info, wanted = cell.case, lab.dataset.info, cell.inversion
    labels = None if wanted.label is None else [wanted.label]
    key = stream(_repair_key(case), "inversion")

    def work(hooks):
        given = (
            key,
            lab.model,
            victim.tree.variables,
            reserved_split(lab, case.seed),
            wanted.config,
        )
        if wanted.after:
            label = int(broadcast_from_host0([flagged_label(detected.tree)])[0])
            return (nothing(info.shape), []) if label < 0 else invert(*given, [label], hooks)
        return invert(*given, labels, hooks)

    recipe = {"inversion": wanted.settings, **_begins_with(lab, case)}
    return Task(
        cell.name,
        _cache(lab) / f"{info.name}-{case.label}-inversion-seed{case.seed}-{recipe_hash(recipe)}",
        like=like(info.num_classes if wanted.label is None and not wanted.after else 1, info.shape),
        evaluate=_count_nothing,
        work=work,
    )


def _lineage_task(
    lab: Lab, cell: Cell, victim: Stage | None = None, prepared: Stage | None = None
) -> Task:
    """All updates of the victim on the fresh images, kept in the cache; counted after the last, under its drift."""
    case, config = cell.case, cell.choice.config
    recipe = {
        "evolution": to_mapping(config),
        "victim": case.recipe,
        "seed": case.seed,
        "fresh": lab.config.fresh,
    }
    if not case.attacked:  # where there is no trigger these say nothing
        recipe["evolution"] |= {"persistent": 0.0, "trigger_first": False}
    recipe |= {"measured": lab.config.measured, "images": lab.fresh_hash}
    recipe |= {
        "drift": list(config.drift.items())
    }  # one after another: their order counts, which a mapping's hash does not know
    if cell.defense:
        called = next(choice for choice in lab.config.defenses if choice.label == config.defense)
        recipe |= {
            "called": called.name,
            "defense": to_mapping(called.config),
            "reserved": to_mapping(lab.config.reserved),
        }
    folder = (
        _cache(lab)
        / f"{lab.dataset.info.name}-{case.label}-lineage-seed{case.seed}-{recipe_hash(recipe)}"
    )

    def evaluate(variables):
        measure, last = lineages.measure_of(lab, case.attack, config), config.updates
        test = lineages.shifted(lab.dataset.test, config, last, lab.dataset.info.num_classes)
        return measure(variables, victim.tree.trigger, test, lineages.strengths(config, last))[0]

    return Task(
        cell.name,
        folder,
        like=jax.eval_shape(lab.model.init, jax.random.key(0)),
        evaluate=evaluate,
        loop=None
        if cell.defense
        else lambda: lineages.lineage_loop(lab, cell, victim.tree, prepared and prepared.tree),
        work=lambda hooks: lineages.defended_lineage(
            lab, cell, victim.tree, prepared and prepared.tree, folder, hooks
        ),
        watch=lineages.lineage_watch(lab, cell, folder, lambda: victim.tree),
        watch_every=lineages.per_update(lab, config),
    )


def _beginning_task(lab: Lab, cell: Cell, victim: Stage | None, *prepared: Stage | None) -> Task:
    """The first stage of a training-time defence, kept in the cache for all that begin alike."""
    case, settings = cell.case, cell.defense.settings
    recipe = {"beginning": settings, "seed": case.seed, "victim": case.recipe}
    return Task(
        cell.name,
        _cache(lab)
        / f"{lab.dataset.info.name}-{case.label}-beginning-seed{case.seed}-{recipe_hash(recipe)}",
        like=jax.eval_shape(lab.model.init, jax.random.key(0)),
        evaluate=lambda variables: case.evaluate(variables, victim.tree.trigger, lab.dataset.test),
        loop=lambda: cell.defense.begin(
            untrusted.training_key(case),
            lab.model,
            untrusted.untrusted_data(lab, case, *prepared)[0],
        ),
        watch=untrusted.training_watch(
            lab, case, lambda: victim.tree, lambda: untrusted.untrusted_data(lab, case, *prepared)
        ),
        watch_every=whole_calls(
            cell.defense.epoch(len(lab.dataset.train.labels)), lab.config.loop.steps_per_call
        ),
    )


def _training_task(lab: Lab, cell: Cell, victim: Stage | None, *earlier: Stage | None) -> Task:
    """What a training-time defence makes of the poisoned set, and what it found out about its images."""
    case, choice, (*prepared, begun) = cell.case, cell.choice, earlier
    data = lambda: untrusted.untrusted_data(lab, case, *prepared)

    def work(hooks):
        trained = cell.defense.train(
            untrusted.training_key(case), lab.model, data()[0], begun.tree, hooks
        )
        return untrusted.TrainedModel(trained.variables, trained.found), lines_of(trained.trace)

    recipe = {
        "defense": choice.name,
        "settings": to_mapping(choice.config),
        "seed": case.seed,
        "victim": case.recipe,
    }
    size = len(lab.dataset.train.labels)
    return Task(
        cell.name,
        lab.workdir
        / "checkpoints"
        / f"{case.label}-{choice.label}-seed{case.seed}-{recipe_hash(recipe)}",
        like=untrusted.TrainedModel(
            jax.eval_shape(lab.model.init, jax.random.key(0)), cell.defense.found(size)
        ),
        evaluate=lambda outcome: case.evaluate(
            outcome.variables, victim.tree.trigger, lab.dataset.test
        ),
        work=work,
        watch=untrusted.training_watch(lab, case, lambda: victim.tree, data),
    )


def _count_nothing(tree: Any) -> Counts:
    """The counts of a stage that is no model."""
    return Counts(*([np.zeros(0, np.int32)] * 5))


def _repair_key(case: Case) -> jax.Array:
    return stream(jax.random.key(case.seed), "repair")


def _begins_with(lab: Lab, case: Case) -> dict[str, Any]:
    """What repairs and inversions of a case begin with, as part of their recipes."""
    return {"victim": case.recipe, "seed": case.seed, "reserved": to_mapping(lab.config.reserved)}


def found_of(cell: Cell, results: Mapping[str, Any]) -> Found | None:
    """What was found out of the model before a repair, from the inversions among the `results`; None for what needs none."""
    if cell.kind != "repair" or cell.defense.search is None:
        return None
    return gather(cell.defense.search, *[results[needed.name].tree for needed in cell.needs[1:]])


def _repair_task(lab: Lab, cell: Cell, victim: Stage | None, *searched: Stage | None) -> Task:
    """What the defence makes of the victim with the reserved images of the case's seed, counted under the same trigger."""
    case, choice, defense = cell.case, cell.choice, cell.defense
    key = _repair_key(case)
    evaluate = lambda variables: case.evaluate(variables, victim.tree.trigger, lab.dataset.test)
    given = lambda: (key, lab.model, victim.tree.variables, reserved_split(lab, case.seed))

    def work(hooks):
        options = {}
        if defense.search:
            found = gather(defense.search, *[stage.tree for stage in searched])
            hooks.say(found.text)
            options = {"found": found}
        repaired = defense.repair(*given(), hooks, **options)
        if not isinstance(repaired, Repaired):
            raise TypeError(
                f"{choice.label}: repair returned a {type(repaired).__name__}; want d3jax.Repaired(variables, trace)"
            )
        return repaired.variables, lines_of(repaired.trace)

    def watch(state):
        counts = evaluate(state.variables)
        return {"watch_acc": counts.acc} | (
            {"watch_asr": counts.asr} if counts.triggered.sum() else {}
        )

    recipe = {
        "defense": choice.name,
        "settings": to_mapping(choice.config),
        **_begins_with(lab, case),
    }
    return Task(
        cell.name,
        lab.workdir
        / "checkpoints"
        / f"{case.label}-{choice.label}-seed{case.seed}-{recipe_hash(recipe)}",
        like=jax.eval_shape(lab.model.init, key),
        evaluate=evaluate,
        loop=(lambda: defense.loop(*given())) if defense.loop else None,
        work=work,
        watch=watch,
        watch_every=lab.config.loop.watch_every,
    )
