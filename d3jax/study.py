"""A study from config to report: poison, train, repair, evaluate, report.

Every model is a stage in a folder named by the hash of all that made it, so a rerun takes finished ones as they are,
continues the one that was cut off, and lets many defences share one attack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .attacks import ATTACKS
from .base import Attack, Dataset, Defense, Model, Split, Variables, as_float, as_levels, stream
from .checkpoint import digest
from .config import Choice, StudyConfig
from .config_file import dumps, to_mapping
from .data import DATASETS, fingerprint, reserve
from .defenses import DEFENSES
from .environment import environment
from .errors import DivergedError
from .journal import Journal, Progress
from .metrics import Counts, der, make_evaluate, predict
from .models import MODELS
from .page import Samples, write_report
from .report import NUMBERS, print_table, write_csv, write_whole
from .stages import Recorder, Stage, recipe_hash, run_stage
from .training.backdoor import poisoned_rows, train_backdoored
from .training.loop import lines_of

FORMAT = 1
"""Part of every hash; counted up when the same config would compute other numbers."""

REGISTRIES = {
    name: {key: cls for key, (cls, _) in registry.items()}
    for name, registry in (("datasets", DATASETS), ("models", MODELS), ("attacks", ATTACKS), ("defenses", DEFENSES))
}

SHOWN = 8
"""Test images in the report's grid."""


class Victim(NamedTuple):
    """A backdoored model and its trigger."""

    variables: Variables
    trigger: Any


class Case(NamedTuple):
    """One attack under one seed; `attack_seed` makes the victim, `seed` the repairs. `recipe` is all that makes the victim,
    `evaluate(variables, trigger, test) -> Counts` is compiled once an attack."""

    label: str
    attack: Attack
    evaluate: Callable[..., Counts]
    seed: int
    attack_seed: int
    recipe: dict[str, Any]


class Lab(NamedTuple):
    """What all cells of a study share."""

    config: StudyConfig
    dataset: Dataset
    data_hash: str
    model: Model
    precision: str
    workdir: Path
    recorder: Recorder


def run_study(config: StudyConfig, workdir: str | Path, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Runs `config` in the folder `workdir` (made if need be) and returns the rows of its results.csv.

    Raises `D3JaxError`: before any work where the config cannot be run on this data, later where a loss diverges.
    """
    lab = open_lab(config, Path(workdir), progress or Progress())
    attacks = [(choice, construct(ATTACKS, choice, lab)) for choice in config.attacks]
    defenses = [(choice, construct(DEFENSES, choice, lab)) for choice in config.defenses]
    check(lab, attacks, defenses)
    write_whole(lab.workdir / "config.yaml", dumps(config))
    write_whole(lab.workdir / "environment.json", json.dumps(lab.recorder.environment, indent=1))
    rows, counts, samples = [], [], []
    for choice, attack in attacks:
        evaluate = make_evaluate(lab.model, attack, lab.dataset.info.num_classes, config.loop.eval_batch)
        for seed in config.seeds:
            case = make_case(lab, choice, attack, evaluate, seed)
            victim = train_victim(lab, case)
            stages: dict[str, Stage | DivergedError] = {"none": victim}
            for defense_choice, defense in defenses:
                try:
                    stages[defense_choice.label] = repair_victim(lab, case, victim, defense_choice, defense)
                except DivergedError as error:  # one repair that breaks does not stop the study
                    stages[defense_choice.label] = error
            rows += [row(lab, case, label, stage, victim) for label, stage in stages.items()]
            finished = {label: stage for label, stage in stages.items() if isinstance(stage, Stage)}
            counts += [line for label, stage in finished.items() for line in class_rows(lab, case, label, stage)]
            write_csv(lab.workdir / "results.csv", rows)
            write_csv(lab.workdir / "per_class.csv", counts, columns=())
            if seed == config.seeds[0]:
                samples.append(sample(lab, case, finished))
    print_table(rows)
    lab.recorder.progress.say(f"report: {write_report(lab.workdir, rows, samples, lab.workdir.name)}")
    return rows


def open_lab(config: StudyConfig, workdir: Path, progress: Progress) -> Lab:
    """Loads the data and builds the model; writes nothing."""
    dataset = DATASETS[config.dataset.name][1](config.dataset.config)
    precision = config.precision
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = MODELS[config.model.name][1](config.model.config, dataset.info, jnp.dtype(precision))
    recorder = Recorder(config.loop, environment() | {"precision": precision}, Journal(workdir / "metrics.jsonl"), progress)
    data_hash = fingerprint(dataset)
    train, test = (Split(*map(jnp.asarray, split)) for split in dataset[:2])
    return Lab(config, Dataset(train, test, dataset.info), data_hash, model, precision, workdir, recorder)


def construct(registry: dict, choice: Choice, lab: Lab) -> Any:
    """The attack or defence of `choice` for this data set."""
    return registry[choice.name][1](choice.config, lab.dataset.info)


def check(lab: Lab, attacks: list[tuple[Choice, Attack]], defenses: list[tuple[Choice, Defense]]) -> None:
    """Raises what would go wrong later: an attack that this data set refuses, a defence that this model does not suit."""
    params = jax.eval_shape(lab.model.init, jax.random.key(0)).params
    size = len(reserved_split(lab, lab.config.seeds[0]).labels)
    for _, attack in attacks:
        attack.select(jax.random.key(0), lab.dataset.train.labels)
    for _, defense in defenses:
        defense.check(params, size)


def make_case(lab: Lab, choice: Choice, attack: Attack, evaluate: Callable[..., Counts], seed: int) -> Case:
    """The case of `attack` under `seed`. The recipe holds the trigger's contents too: a pattern may come from a file."""
    config = lab.config
    attack_seed = seed if config.attack_seed is None else config.attack_seed
    recipe = {
        "format": FORMAT, "data": lab.data_hash, "model": config.model.name, "net": to_mapping(config.model.config),
        "attack": choice.name, "settings": to_mapping(choice.config), "train": to_mapping(config.train),
        "trigger": digest(attack.init(stream(jax.random.key(attack_seed), "trigger"))),
        "precision": lab.precision, "seed": attack_seed,
    }  # fmt: skip
    return Case(choice.label, attack, evaluate, seed, attack_seed, recipe)


def train_victim(lab: Lab, case: Case) -> Stage:
    """The backdoored model: trained on the set that the attack poisons, or taken from the cache."""
    attack, info, root = case.attack, lab.dataset.info, jax.random.key(case.attack_seed)

    def work(session):
        trained = train_backdoored(root, lab.model, lab.dataset, attack, lab.config.train, session)
        return Victim(trained.variables, trained.trigger), lines_of(trained.trace)

    cache = Path(lab.config.cache).expanduser() if lab.config.cache else lab.workdir / "checkpoints"
    return run_stage(
        f"{case.label}/seed{case.attack_seed}/train",
        cache / f"{info.name}-{lab.config.model.name}-{case.label}-{recipe_hash(case.recipe)}",
        like=jax.eval_shape(lambda: Victim(lab.model.init(root), attack.init(root))),
        work=work,
        evaluate=lambda victim: case.evaluate(victim.variables, victim.trigger, lab.dataset.test),
        recorder=lab.recorder,
    )


def repair_victim(lab: Lab, case: Case, victim: Stage, choice: Choice, defense: Defense) -> Stage:
    """What `defense` makes of the victim with the reserved images of the case's seed, counted under the same trigger."""
    variables, trigger = victim.tree
    evaluate = lambda variables: case.evaluate(variables, trigger, lab.dataset.test)

    def work(session):
        key = stream(jax.random.key(case.seed), "repair")
        repaired = defense.repair(key, lab.model, variables, reserved_split(lab, case.seed), session)
        return repaired.variables, lines_of(repaired.trace)

    def watch(variables):
        counts = evaluate(variables)
        return {"watch_acc": counts.acc} | ({"watch_asr": counts.asr} if counts.triggered.sum() else {})

    recipe = {
        "victim": case.recipe, "defense": choice.name, "settings": to_mapping(choice.config),
        "seed": case.seed, "reserved": to_mapping(lab.config.reserved),
    }  # fmt: skip
    return run_stage(
        f"{case.label}/seed{case.seed}/{choice.label}",
        lab.workdir / "checkpoints" / f"{case.label}-{choice.label}-seed{case.seed}-{recipe_hash(recipe)}",
        like=variables,
        work=work,
        evaluate=evaluate,
        recorder=lab.recorder,
        watch=watch,
        watch_every=lab.config.loop.watch_every,
    )


def reserved_split(lab: Lab, seed: int) -> Split:
    """The defender's clean images of `seed`."""
    train, _, info = lab.dataset
    rows = reserve(train, lab.config.reserved, seed, info.num_classes)
    return Split(train.images[rows], train.labels[rows])


def row(lab: Lab, case: Case, label: str, stage: Stage | DivergedError, victim: Stage) -> dict[str, Any]:
    """The line of results.csv for one defence (or "none") of a case; numbers are None where it failed."""
    config = lab.config
    poisoned = poisoned_rows(jax.random.key(case.attack_seed), case.attack, lab.dataset.train.labels)
    values = dict.fromkeys(("dataset", "model", "attack", "poison_rate", "defense", "seed", *NUMBERS)) | {
        "dataset": lab.dataset.info.name, "model": config.model.name, "attack": case.label,
        "poison_rate": int(poisoned.sum()) / len(poisoned), "defense": label, "seed": case.seed,
    }  # fmt: skip
    if isinstance(stage, Stage):
        counts, last = stage.counts, stage.lines[-1] if stage.lines else {}
        values |= {
            "acc": counts.acc, "asr": counts.asr, "ra": counts.ra, "der": math.nan if label == "none" else der(victim.counts, counts),
            "n_clean": int(counts.clean.sum()), "n_triggered": int(counts.triggered.sum()), "seconds": stage.seconds,
            "cosine": last.get("cosine"), "distance_ratio": last.get("distance_ratio"),
            "commit": stage.environment["commit"], "device": stage.environment["device"],
        }  # fmt: skip
    values |= {
        "attack_seed": case.attack_seed,
        "net": " ".join(f"{key}={value}" for key, value in to_mapping(config.model.config).items()),
        "status": "ok" if isinstance(stage, Stage) else f"failed: {stage}",
        "published": config.published.get(f"{case.label}/{label}", "none"),
    }
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def class_rows(lab: Lab, case: Case, label: str, stage: Stage) -> list[dict[str, Any]]:
    """The lines of per_class.csv: the counts of every true class."""
    where = {"attack": case.label, "defense": label, "seed": case.seed}
    counts = {key: values.tolist() for key, values in stage.counts._asdict().items()}
    return [
        where | {"class": name} | {key: values[i] for key, values in counts.items()}
        for i, name in enumerate(lab.dataset.info.classes)
    ]


def sample(lab: Lab, case: Case, stages: dict[str, Stage]) -> Samples:
    """A few triggered test images, and what every model says of them, for the report."""
    attack, trigger, (images, labels) = case.attack, stages["none"].tree.trigger, lab.dataset.test
    wanted = attack.relabel(labels)
    candidates = np.flatnonzero(np.asarray(wanted != labels))
    rows = (candidates if candidates.size else np.arange(len(labels)))[:SHOWN]
    clean, labels = images[rows], labels[rows]
    triggered = as_levels(attack.stamp(trigger, as_float(clean))).astype(jnp.uint8)
    variables = {label: stage.tree.variables if label == "none" else stage.tree for label, stage in stages.items()}
    say = lambda v: tuple(np.asarray(predict(lab.model, v, x)) for x in (clean, triggered))
    return Samples(
        case.label, case.seed, *map(np.asarray, (clean, triggered, labels)), lab.dataset.info.classes,
        predictions={label: say(v) for label, v in variables.items()},
        per_class={label: stage.counts.per_class() for label, stage in stages.items()},
        targets=np.asarray(wanted[rows]),
    )  # fmt: skip
