"""Lineages in a study: a model, backdoored or clean, and its updates; what is measured after each, and defences called between them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.images import as_float, as_levels
from ...core.random import stream
from ...core.types import Attack, Model, Prepared, Split, Variables
from ...data.drift import compose, keys_of, label_shift
from ...evolution.updates import (
    EvolutionConfig,
    divide,
    drift_keys,
    evolution_loop,
    lineage_key,
    restarted,
    steps_of,
    update_rates,
)
from ...metrics.attack_success import Counts, make_asr, make_measure
from ...runtime import checkpoint
from ...runtime.compilation import fast
from ...training.loop import Hooks, LogRecord, TrainLoop, fit
from ...training.poisoned_set import poisoned_split
from ..attack_run import Cell
from ..context import Lab, reserved_split


@functools.lru_cache(maxsize=64)
def _counting(
    make: Callable[..., Any], model: Model, attack: Attack, classes: int, channels: int, drift: tuple[str, ...], first: bool, batch: int
) -> Any:  # fmt: skip
    """What `make` builds, once for all lineages that drift alike."""
    return make(model, attack, classes, batch, compose(drift, channels), first)


def _options(lab: Lab, attack: Attack, config: EvolutionConfig) -> tuple[Any, ...]:
    info = lab.dataset.info
    return (
        lab.model,
        attack,
        info.num_classes,
        info.shape[2],
        tuple(config.drift),
        config.trigger_first,
        lab.config.loop.eval_batch,
    )


def measure_of(
    lab: Lab, attack: Attack, config: EvolutionConfig
) -> Callable[..., tuple[Counts, float]]:
    """`measure(variables, trigger, test, strengths)` under the drift of a lineage."""
    return _counting(make_measure, *_options(lab, attack, config))


def asr_of(lab: Lab, attack: Attack, config: EvolutionConfig) -> Callable[..., float]:
    """`asr(variables, trigger, test, strengths)` under the drift of a lineage."""
    return _counting(make_asr, *_options(lab, attack, config))


def strengths(config: EvolutionConfig, update: int) -> jax.Array:
    """The drift's strengths at an update."""
    return jnp.asarray([update * value for value in config.drift.values()], jnp.float32)


def per_update(lab: Lab, config: EvolutionConfig) -> int:
    """Steps in an update."""
    return steps_of(config, len(lab.fresh.labels))


def fresh_sets(lab: Lab, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Which fresh images each update of a lineage learns, and which it keeps (`divide`)."""
    return divide(
        lineage_key(cell.case.seed),
        lab.fresh.labels,
        cell.choice.config,
        lab.dataset.info.num_classes,
    )


def lineage_loop(lab: Lab, cell: Cell, victim: Any, prepared: Prepared | None = None) -> TrainLoop:
    """The loop of a lineage that begins with a finished `victim`, whose attack had `prepared` something."""
    case, config, replayed = cell.case, cell.choice.config, None
    if config.replay:
        replayed, _ = poisoned_split(
            jax.random.key(case.attack_seed), case.attack, lab.dataset.train, prepared
        )
    given = (
        lab.model,
        victim.variables,
        replayed,
        lab.fresh,
        case.attack,
        victim.trigger,
        config,
        lab.dataset.info,
    )
    return evolution_loop(lineage_key(case.seed), *given)


def lineage_watch(
    lab: Lab, cell: Cell, folder: Path, victim: Callable[[], Any]
) -> Callable[[Any], LogRecord]:
    """What is measured at the end of an update: ACC, ASR, RA and by how much the trigger raises its class's logit (`score`) on the
    drifted test images, the same on those of the next update (`next_…`), ACC on the fresh images kept from learning (`valid_acc`),
    how far the parameters moved (`moved`, the norm over all of them), and the sum of the update's rates. After the first update the
    model before it is measured too (`first_…`).

    The control, a lineage without a backdoor, keeps every update's model in `folder`/updates: attacks count on them what their
    trigger does there.
    """
    config, case = cell.choice.config, cell.case
    count = measure_of(lab, case.attack, config)
    steps = per_update(lab, config)
    total = float(update_rates(config, steps).sum())
    kept = fresh_sets(lab, cell)[1]

    def measure(prefix: str, variables: Variables, update: int) -> LogRecord:
        """On the test images as they are at an update."""
        counts, score = count(
            variables, victim().trigger, measured(lab, config, update), strengths(config, update)
        )
        if not counts.triggered.sum():
            return {f"{prefix}acc": counts.acc}
        rates = {f"{prefix}acc": counts.acc, f"{prefix}asr": counts.asr, f"{prefix}ra": counts.ra}
        return rates | {f"{prefix.removeprefix('watch_')}score": score}

    def watch(state: Any) -> LogRecord:
        update = int(state.step) // steps
        line = {
            "update": update,
            "moved": _distance(state.variables.params, state.carry["start_params"]),
            "lr_sum": total,
        }
        line |= measure("watch_", state.variables, update)
        if "watch_asr" not in line:
            checkpoint.save(folder / "updates" / str(update), state.variables)
        if kept.shape[1]:
            valid = Split(*(np.asarray(part)[kept[update - 1]] for part in lab.fresh))
            line["valid_acc"] = _accuracy(lab, config, state.variables, valid, update)
        if update < config.updates:
            line |= measure("next_", state.variables, update + 1)
        if update == 1:
            line |= measure("first_", victim().variables, 1)
        return line

    return watch


def defended_lineage(
    lab: Lab, cell: Cell, victim: Any, prepared: Prepared | None, folder: Path, hooks: Hooks
) -> tuple[Variables, list[LogRecord]]:
    """A lineage whose defence is called after every `every`-th update, `calls` times: a loop an update, with checkpoints of its own.

    The defence has as many images as the study reserves, but of those that the update learned, drifted as they were, and of
    these such as nobody poisoned: a defender who looks through them. What it makes goes into the next update, which begins with
    momentum 0, `carried` or not. `trained_acc` and `trained_asr` are those before it, all others those behind it.
    """
    config, defense = cell.choice.config, cell.defense
    loop, steps = lineage_loop(lab, cell, victim, prepared), per_update(lab, config)
    measure, watch = (
        measure_of(lab, cell.case.attack, config),
        lineage_watch(lab, cell, folder, lambda: victim),
    )
    key = stream(lineage_key(cell.case.seed), "defense")
    state, lines, seconds = loop.state, [], 0.0
    for update in range(1, config.updates + 1):
        state, mine = fit(
            loop._replace(state=state, steps=update * steps), hooks.within(f"update{update}")
        )
        mine = [line | {"seconds": line["seconds"] + seconds} for line in mine]
        seconds = mine[-1]["seconds"]
        line = {}
        call, due = divmod(update, config.every)
        if not due and (not config.calls or call <= config.calls):
            counts, _ = measure(
                state.variables,
                victim.trigger,
                measured(lab, config, update),
                strengths(config, update),
            )
            line = {"trained_acc": counts.acc} | (
                {"trained_asr": counts.asr} if counts.triggered.sum() else {}
            )
            images = _looked_through(lab, cell, loop, update)
            given = (jax.random.fold_in(key, update), lab.model, state.variables, images)
            repaired = defense.repair(*given, hooks.within(f"defense{update}"))
            seconds += float(np.max(repaired.trace.get("seconds", 0.0)))
            state = restarted(state, repaired.variables)
        mine[-1] |= line | watch(state)
        lines += mine
    return state.variables, lines


def _looked_through(lab: Lab, cell: Cell, loop: TrainLoop, update: int) -> Split:
    """The clean images of an update that a defence may use."""
    config, info = cell.choice.config, lab.dataset.info
    learned = fresh_sets(lab, cell)[0].shape[1]
    first = len(loop.data.loss_inputs["order"]) - learned * (config.updates - update + 1)
    clean = first + np.flatnonzero(~np.asarray(loop.data.poisoned[first : first + learned]))
    places = clean[: len(reserved_split(lab, cell.case.seed).labels)]
    images, labels = (part[loop.data.loss_inputs["order"][places]] for part in loop.data.split)
    keys = drift_keys(loop.state.key, places)
    drifted = compose(tuple(config.drift), info.shape[2])(
        keys, as_float(images), strengths(config, update)
    )
    return Split(as_levels(drifted).astype(jnp.uint8), labels)


def measured(lab: Lab, config: EvolutionConfig, update: int) -> Split:
    """The test images that are measured after an update."""
    count = lab.config.measured or len(lab.dataset.test.labels)
    return shifted(
        Split(*(part[:count] for part in lab.dataset.test)),
        config,
        update,
        lab.dataset.info.num_classes,
    )


def shifted(test: Split, config: EvolutionConfig, update: int, num_classes: int) -> Split:
    """The test images with their labels shifted as those of the update's fresh images are, by resampling."""
    if not config.label_shift:
        return test
    key = jax.random.fold_in(stream(jax.random.key(0), "test"), update)
    rows = label_shift(key, jnp.asarray(test.labels), config.label_shift * update, num_classes)
    return Split(*(part[rows] for part in test))


def _accuracy(
    lab: Lab, config: EvolutionConfig, variables: Variables, images: Split, update: int
) -> float:
    """ACC on images as they are at an update."""
    channels, amounts = lab.dataset.info.shape[2], strengths(config, update)
    said = [
        _classes(lab.model, tuple(config.drift), channels, variables, keys, part, amounts)
        for keys, (part, _) in _batches(images, lab.config.loop.eval_batch)
    ]
    return float((np.concatenate(jax.device_get(said)) == np.asarray(images.labels)).mean())


def _batches(split: Split, size: int) -> Sequence[tuple[jax.Array, Split]]:
    """Batches of a set, each with the keys by which its images drift."""
    rows = np.split(np.arange(len(split.labels)), range(size, len(split.labels), size))
    return [
        (keys_of(jax.random.key(0), mine), Split(*(part[mine] for part in split))) for mine in rows
    ]


@functools.partial(fast, static=3)
def _classes(model: Model, drift: tuple[str, ...], channels: int, variables: Variables, keys: jax.Array, images: jax.Array, amounts: jax.Array):  # fmt: skip
    moved = compose(drift, channels)(keys, as_float(images), amounts)
    return model.apply(variables, moved, train=False).logits.argmax(-1)


@jax.jit
def _norm(a: Any, b: Any) -> jax.Array:
    return jnp.sqrt(
        sum(
            ((x - y) ** 2).sum()
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )
    )


def _distance(a: Any, b: Any) -> float:
    return float(_norm(a, b))
