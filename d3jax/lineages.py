"""Lineages in a study: a model, backdoored or clean, and its updates; what is measured after each, and the rows that come of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import checkpoint
from .base import Attack, Model, Split, Variables, as_float
from .cells import Cell, Lab
from .data.drift import compose
from .evolution import EvolutionConfig, evolution_job, survivability
from .metrics import Counts, make_evaluate
from .stages import Result, Stage
from .strategies import rates
from .training.backdoor import poisoned_rows
from .training.loop import Job, Line

TAUS = (0.9, 0.5, 0.1)


@functools.lru_cache(maxsize=64)
def _evaluate(model: Model, attack: Attack, num_classes: int, batch: int, drift: tuple[str, ...], channels: int, first: bool):
    """Compiled once for all lineages that drift alike."""
    return make_evaluate(model, attack, num_classes, batch, compose(drift, channels), first)


def evaluate_of(lab: Lab, attack: Attack, config: EvolutionConfig) -> Callable[..., Counts]:
    """`evaluate(variables, trigger, test, strengths)` under the drift of a lineage."""
    info = lab.dataset.info
    kinds = tuple(config.drift)
    return _evaluate(lab.model, attack, info.num_classes, lab.config.loop.eval_batch, kinds, info.shape[2], config.trigger_first)


def strengths(config: EvolutionConfig, update: int) -> jax.Array:
    """The drift's strengths at an update."""
    return jnp.asarray([update * value for value in config.drift.values()], jnp.float32)


def per_update(lab: Lab, config: EvolutionConfig) -> int:
    """Steps in an update."""
    return config.epochs * (len(lab.fresh.labels) // config.updates // config.batch_size)


def lineage_job(lab: Lab, cell: Cell, key: jax.Array, victim: Any) -> Job:
    """The loop of a lineage that begins with a finished `victim`."""
    attack, config = cell.case.attack, cell.choice.config
    poisoned = poisoned_rows(jax.random.key(cell.case.attack_seed), attack, lab.dataset.train.labels) if config.replay else None
    return evolution_job(
        key, lab.model, victim.variables, lab.dataset.train, lab.fresh, attack, victim.trigger, config, lab.dataset.info, poisoned
    )


def lineage_watch(lab: Lab, cell: Cell, folder: Path, victim: Callable[[], Any]) -> Callable[[Any], Line]:
    """What is measured at the end of an update: ACC, ASR and RA on the drifted test images, ACC on those of the next update (`next_acc`),
    how far the parameters moved in it (`moved`, the norm over all of them), and the sum of its rates.

    The control, a lineage without a backdoor, keeps every update's model in `folder`/updates: attacks count on them what their
    trigger does there.
    """
    config, case = cell.choice.config, cell.case
    evaluate, test = evaluate_of(lab, case.attack, config), _measured(lab)
    steps = per_update(lab, config)
    total = float(rates(config.strategy, steps).sum()) * (config.learn == "all")

    def watch(state: Any) -> Line:
        update = int(state.step) // steps
        counts = evaluate(state.variables, victim().trigger, test, strengths(config, update))
        line = {"update": update, "watch_acc": counts.acc, "moved": _distance(state.variables.params, state.opt_state[1])}
        line |= {"lr_sum": total}
        if counts.triggered.sum():
            line |= {"watch_asr": counts.asr, "watch_ra": counts.ra}
        else:
            checkpoint.save(folder / "updates" / str(update), state.variables)
        if update < config.updates:
            line["next_acc"] = _accuracy(lab, config, state.variables, test, update + 1)
        if update == 1:
            line["first_acc"] = _accuracy(lab, config, victim().variables, test, 1)
        return line

    return watch


def _measured(lab: Lab) -> Split:
    count = lab.config.measured or len(lab.dataset.test.labels)
    return Split(*(part[:count] for part in lab.dataset.test))


def _accuracy(lab: Lab, config: EvolutionConfig, variables: Variables, test: Split, update: int) -> float:
    info, size = lab.dataset.info, lab.config.loop.eval_batch
    hits = 0
    for first in range(0, len(test.labels), size):
        images, labels = (part[first : first + size] for part in test)
        said = _classes(lab.model, tuple(config.drift), info.shape[2], variables, images, strengths(config, update))
        hits += int((np.asarray(said) == np.asarray(labels)).sum())
    return hits / len(test.labels)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _classes(model: Model, drift: tuple[str, ...], channels: int, variables: Variables, images: jax.Array, amounts: jax.Array):
    moved = compose(drift, channels)(jax.random.key(0), as_float(images), amounts)
    return model.apply(variables, moved, train=False).logits.argmax(-1)


@jax.jit
def _norm(a: Any, b: Any) -> jax.Array:
    return jnp.sqrt(sum(((x - y) ** 2).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))


def _distance(a: Any, b: Any) -> float:
    return float(_norm(a, b))


def control_rates(lab: Lab, cell: Cell, folder: Path, trigger: Any) -> dict[int, float]:
    """How often the control's model says the attacker's class for triggered images, by update, as far as its models are there."""
    config, test = cell.choice.config, _measured(lab)
    evaluate = evaluate_of(lab, cell.case.attack, config)
    like = jax.eval_shape(lab.model.init, jax.random.key(0))
    found = {}
    for update in range(1, config.updates + 1):
        path = folder / "updates" / str(update)
        if path.is_dir():
            variables, _ = checkpoint.load(path, like)
            found[update] = evaluate(variables, trigger, test, strengths(config, update)).asr
    return found


def lineage_rows(
    lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result], controls: Mapping[str, Mapping[int, float]]
) -> list[dict[str, Any]]:
    """The lines of evolution.csv: every lineage at every update, 0 being the model it began with."""
    rows = []
    for cell in cells:
        result, model = results.get(cell.name), results.get(Cell(cell.case).name)
        if cell.kind != "lineage" or not (isinstance(result, Stage) and isinstance(model, Stage)):
            continue
        where = {"attack": cell.case.label, "evolution": cell.label, "seed": cell.case.seed}
        none = lambda value: None if value is None or np.isnan(value) else value
        start = {"update": 0, "acc": model.counts.acc, "asr": none(model.counts.asr), "ra": none(model.counts.ra)}
        rows.append(where | start | {"stale_acc": None, "control": None, "moved": None, "lr_sum": None})
        stale = None
        for line in updates_of(result.lines):
            stale = line.get("first_acc", stale)
            rows.append(where | {
                "update": int(line["update"]), "acc": line["watch_acc"], "asr": line.get("watch_asr"), "ra": line.get("watch_ra"),
                "stale_acc": stale, "control": controls.get(cell.name, {}).get(int(line["update"])),
                "moved": line["moved"], "lr_sum": line["lr_sum"],
            })  # fmt: skip
            stale = line.get("next_acc")
    return rows


def updates_of(lines: Sequence[Line]) -> list[Line]:
    """The logged lines that end an update."""
    return [line for line in lines if "update" in line]


def survival(lines: Sequence[Line]) -> dict[str, Any]:
    """S_τ of a lineage as columns of results.csv, and whether each is censored; none without a trigger."""
    asr = [line["watch_asr"] for line in updates_of(lines) if "watch_asr" in line]
    if not asr:
        return {}
    values = {}
    for tau in TAUS:
        count, censored = survivability(asr, tau)
        values |= {f"survived_{tau:g}": count, f"survived_{tau:g}_censored": censored}
    return values


def strategies_of(lab: Lab) -> dict[str, np.ndarray]:
    """The learning rates of an update, by the evolution's label."""
    return {choice.label: rates(choice.config.strategy, per_update(lab, choice.config)) for choice in lab.config.evolutions}
