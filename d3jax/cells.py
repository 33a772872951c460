"""The cells of a study, (attack, seed, defence), as tasks: what each computes, in which folder, after which, and which run together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import checkpoint
from .attacks import ATTACKS
from .attacks.poisoning import poisoned_share
from .base import Attack, Dataset, Defense, Model, Prepared, Split, Variables, stream
from .checkpoint import digest
from .config import Choice, LoopConfig, StudyConfig, program
from .config_file import to_mapping
from .data import DATASETS, fingerprint, reserve
from .data.batching import epoch_plan
from .defenses import DEFENSES
from .environment import environment
from .errors import ConfigError, D3JaxError
from .journal import Journal, Progress
from .metrics import Counts, make_evaluate
from .models import MODELS
from .sharding import agree
from .stages import Recorder, Stage, Task, recipe_hash
from .training.backdoor import backdoor_job, poisoned_rows, prepare, trigger_of
from .training.loop import lines_of
from .training.repeat import memory_free
from .training.streaming import check_streaming

FORMAT = 2
"""Part of every hash; counted up when the same config would compute other numbers."""


class Victim(NamedTuple):
    """A backdoored model and its trigger."""

    variables: Variables
    trigger: Any


class Case(NamedTuple):
    """One attack under one seed; `attack_seed` makes the victim, `seed` the repairs. `recipe` is all that makes the victim,
    `poison_rate` the share of its training images that are poisoned, `poisoned` how many of the set stay so,
    `evaluate(variables, trigger, test) -> Counts` is compiled once an attack. `surrogate` is the clean training whose model the
    attack finds its trigger on."""

    label: str
    attack: Attack
    evaluate: Callable[..., Counts]
    seed: int
    attack_seed: int
    recipe: dict[str, Any]
    poison_rate: float
    poisoned: int
    surrogate: Case | None = None


class Cell(NamedTuple):
    """One row of the results: a case and a defence, or none for the backdoored model itself. Or, with `prepares`, what its attack
    computes before the training, which is no row."""

    case: Case
    choice: Choice | None = None
    defense: Defense | None = None
    prepares: bool = False

    @property
    def label(self) -> str:
        """The defence's name in the results."""
        return self.choice.label if self.choice else "none"

    @property
    def name(self) -> str:
        """What names the cell's result: cells of one name, such as the victim that several seeds share, are one stage."""
        seed = self.case.seed if self.choice else self.case.attack_seed
        what = self.choice.label if self.choice else "trigger" if self.prepares else "train"
        return f"{self.case.label}/seed{seed}/{what}"

    @property
    def needs(self) -> Cell | None:
        """The cell whose result this one begins with."""
        if self.choice:
            return Cell(self.case)
        if self.prepares:
            return self.case.surrogate and Cell(self.case.surrogate)
        return Cell(self.case, prepares=True) if self.case.attack.preparation else None

    @property
    def depth(self) -> int:
        """How many cells come before it."""
        return 1 + self.needs.depth if self.needs else 0


class Lab(NamedTuple):
    """What all cells of a study share."""

    config: StudyConfig
    dataset: Dataset
    data_hash: str
    model: Model
    precision: str
    workdir: Path
    recorder: Recorder
    together: bool
    streamed: bool


def open_lab(config: StudyConfig, workdir: Path, progress: Progress, profile: str = "") -> Lab:
    """Loads the data and builds the model; writes nothing."""
    loop, on_cpu, alone = config.loop, jax.default_backend() == "cpu", jax.process_count() == 1
    if loop.devices > jax.device_count() or (loop.devices and not alone):
        there = f"{jax.device_count()} here" if alone else "several processes, which share all theirs"
        raise ConfigError(f"loop.devices: {loop.devices} asked for, there are {there}")
    devices = tuple(jax.devices()[: loop.devices or (1 if on_cpu and alone else None)])
    dataset = DATASETS[config.dataset.name][1](config.dataset.config)
    precision = config.precision
    if precision == "auto":
        precision = "float32" if on_cpu else "bfloat16"
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    model = MODELS[config.model.name][1](config.model.config, dataset.info, dtype)
    journal = Journal(workdir / "metrics.jsonl")
    recorder = Recorder(loop, environment() | {"precision": precision}, journal, progress, devices, profile)
    data_hash = fingerprint(dataset)
    streamed = _is_streamed(loop, dataset, progress)
    if not streamed:
        dataset = Dataset(*(Split(*map(jnp.asarray, split)) for split in dataset[:2]), dataset.info)
    together = loop.members == "together" or (loop.members == "auto" and not on_cpu)
    return Lab(config, dataset, data_hash, model, precision, workdir, recorder, together, streamed)


def _is_streamed(loop: LoopConfig, dataset: Dataset, progress: Progress) -> bool:
    """Whether training images stay on the host. Says so where that was decided here."""
    images, free = dataset.train.images.nbytes, memory_free()
    streamed = loop.placement == "stream"
    if loop.placement == "auto" and free is not None:  # a CPU's memory is where the images are already
        streamed = bool(agree([images > free / 2])[0])
        if streamed:
            progress.say(f"streaming: {images / 2**30:.2f} GiB of training images, {free / 2**30:.2f} GiB of memory are free")
    if streamed:
        check_streaming()
    return streamed


def make_cells(lab: Lab) -> list[Cell]:
    """Every cell in the order of the results: attack, seed, defence.

    Raises what would go wrong later: an attack that this data set refuses, a defence that this model does not suit.
    """
    config, info = lab.config, lab.dataset.info
    params = jax.eval_shape(lab.model.init, jax.random.key(0)).params
    size = len(reserved_split(lab, config.seeds[0]).labels)
    epoch_plan(len(lab.dataset.train.labels), config.train.batch_size, drop_last=True)
    defenses = []
    for choice in config.defenses:
        with _named(f"defenses: {choice.label}"):
            defenses.append((choice, DEFENSES[choice.name][1](choice.config, info)))
            defenses[-1][1].check(params, size)
    cells, clean = [], None
    for choice in config.attacks:
        with _named(f"attacks: {choice.label}"):
            attack = ATTACKS[choice.name][1](choice.config, info)
            evaluate = make_evaluate(lab.model, attack, info.num_classes, config.loop.eval_batch)
            wanted = attack.preparation and attack.preparation.surrogate
            clean = clean or (_clean_training(lab) if wanted else None)
            for seed in config.seeds:
                surrogate = make_case(lab, *clean, seed) if wanted else None
                case = make_case(lab, choice, attack, evaluate, seed)._replace(surrogate=surrogate)
                cells += [Cell(case), *(Cell(case, *pair) for pair in defenses)]
    return cells


def _clean_training(lab: Lab) -> tuple[Choice, Attack, Callable[..., Counts]]:
    """The control `clean`, as attacks use it that find their trigger on a clean model: the same stage where it stands in the study."""
    if any(choice.label == "clean" and choice.name != "clean" for choice in lab.config.attacks):
        raise ConfigError("its trigger is found on a model whose label is 'clean', which another attack has; rename that one")
    config, construct = ATTACKS["clean"]
    attack = construct(config(), lab.dataset.info)
    evaluate = make_evaluate(lab.model, attack, lab.dataset.info.num_classes, lab.config.loop.eval_batch)
    return Choice("clean", "clean", config()), attack, evaluate


@contextlib.contextmanager
def _named(component: str) -> Iterator[None]:
    """Puts in front of an error which entry of the config it is about."""
    try:
        yield
    except D3JaxError as error:
        raise type(error)(f"{component}: {error}") from error


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
    poisoned = poisoned_rows(jax.random.key(attack_seed), attack, lab.dataset.train.labels)
    share = poisoned_share(attack, poisoned, config.train.batch_size)
    return Case(choice.label, attack, evaluate, seed, attack_seed, recipe, share, int(poisoned.sum()))


def part_of(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """Part 1 … `parts` of the cells: runs of neighbours, so that few parts need the same backdoored model."""
    return list(cells[(part - 1) * len(cells) // parts : part * len(cells) // parts])


def plan(lab: Lab, cells: Sequence[Cell], compute: bool) -> list[list[Cell]]:
    """The cells to compute, in groups that run as one program, each after those that it needs; without `compute`, those to read.

    Apart, each cell is a group, in order. Together, the victims of an attack are one group, and so are repairs whose configs
    differ at most in numbers that programs take as arrays.
    """
    wanted: dict[str, Cell] = {}
    for cell in cells:
        chain = [cell]
        while (earlier := chain[-1].needs) and (chain[-1].choice or (compute and not _is_finished(lab, chain[-1]))):
            chain.append(earlier)
        for link in reversed(chain):
            wanted.setdefault(link.name, link)
    if not lab.together:
        return [[cell] for cell in wanted.values()]
    groups: dict[Any, list[Cell]] = {}
    for cell in sorted(wanted.values(), key=lambda cell: cell.depth + 9 * bool(cell.choice)):  # a stable sort: repairs last
        key = cell.case.label if cell.choice is None else (cell.choice.name, program(cell.choice.config))
        if cell.prepares or ((cell.defense.job is None) if cell.choice else lab.streamed):
            key = cell.name  # more than one loop, or one that is fed: alone
        groups.setdefault((cell.choice is None, key), []).append(cell)
    return list(groups.values())


def _is_finished(lab: Lab, cell: Cell) -> bool:
    return checkpoint.exists(task_of(lab, cell, {}).folder / "model")


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


def reserved_split(lab: Lab, seed: int) -> Split:
    """The defender's clean images of `seed`."""
    train, _, info = lab.dataset
    rows = reserve(train, lab.config.reserved, seed, info.num_classes)
    return Split(train.images[rows], train.labels[rows])
