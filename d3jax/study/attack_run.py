"""The cells of a study, (attack, seed, detection or defence): which there are, what each begins with, and what they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..attacks import ATTACKS
from ..attacks.poisoning import poisoned_share
from ..config.loading import to_mapping
from ..config.study import Choice
from ..core.errors import ConfigError, D3JaxError
from ..core.random import stream
from ..core.types import Attack, Defense, TrainingDefense
from ..data.batching import epoch_plan
from ..defenses import DEFENSES
from ..defenses.repair.target import Search, check_classes, check_size
from ..evolution.updates import EvolutionConfig, check_evolution, check_poison, lineage_key
from ..inversion import InversionConfig
from ..metrics.attack_success import Counts, make_evaluate
from ..runtime.checkpoint import digest
from ..training.poisoned_set import check_released
from ..training.victim import poisoned_rows
from .context import Lab, reserved_split
from .executor import recipe_hash
from .external_model import trigger_for

FORMAT = 2
"""Part of every hash; counted up when the same config would compute other numbers."""


class Case(NamedTuple):
    """One attack under one seed; `attack_seed` makes the victim, `seed` the repairs. `recipe` is all that makes the victim,
    `poison_rate` the share of its training images that are poisoned (None: it was trained elsewhere), `poisoned` how many of the set
    stay so, `attacked` whether there is a trigger at all,
    `evaluate(variables, trigger, test) -> Counts` is compiled once an attack. `surrogate` is the clean training whose model the
    attack finds its trigger on."""

    label: str
    attack: Attack
    evaluate: Callable[..., Counts]
    seed: int
    attack_seed: int
    recipe: dict[str, Any]
    poison_rate: float | None
    poisoned: int
    attacked: bool
    surrogate: Case | None = None


class Inverting(NamedTuple):
    """An inversion by `config` of the class `label`, or, where `after` stands, of the one which that detection flags; else of all."""

    config: InversionConfig
    label: int | None = None
    after: InversionConfig | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes it, as plain data."""
        return {
            "config": to_mapping(self.config),
            "label": self.label,
            "after": to_mapping(self.after),
        }

    @property
    def name(self) -> str:
        """A name that no other settings have."""
        whom = "flagged" if self.after else "all" if self.label is None else f"class{self.label}"
        return f"inversion-{self.config.preset}-{whom}-{recipe_hash(self.settings)}"


class Cell(NamedTuple):
    """What a study computes of a case: what its attack finds before the training (a `trigger`), the backdoored `model` itself, an
    `inversion` of it, a `lineage` of its updates, a `repair`, or a `training` by a defence from the poisoned set, whose first stage is a
    `beginning`. `choice` is the entry of the config: a defence, an evolution, or a
    detection that gets rows of its own."""

    case: Case
    kind: Literal["trigger", "model", "inversion", "lineage", "repair", "beginning", "training"] = (
        "model"
    )
    choice: Choice | None = None
    defense: Defense | TrainingDefense | None = None
    inversion: Inverting | None = None

    @property
    def label(self) -> str:
        """The defence's name in the results."""
        return self.choice.label if self.choice else "none"

    @property
    def name(self) -> str:
        """What names the cell's result: cells of one name, such as the victim that several seeds share, are one stage."""
        seed = self.case.attack_seed if self.kind in ("trigger", "model") else self.case.seed
        made = "read" if self.case.poison_rate is None else "train"
        what = {"trigger": "trigger", "model": made}.get(self.kind) or (
            self.inversion.name if self.inversion else self.label
        )
        if self.kind == "beginning":
            what = f"beginning-{recipe_hash(self.defense.settings)}"
        return f"{self.case.label}/seed{seed}/{what}"

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The cells whose results this one begins with: the model first, then what was found out of it."""
        if self.kind == "repair":
            return (Cell(self.case), *searches(self.case, self.defense.search))
        made_first = self.case.attack.preparation and self.case.poison_rate is not None
        prepared = (Cell(self.case, "trigger"),) if made_first else ()
        if self.kind == "lineage":
            return (Cell(self.case), *(prepared if self.choice.config.replay else ()))
        if self.kind in ("beginning", "training"):
            begun = (
                (Cell(self.case, "beginning", None, self.defense),)
                if self.kind == "training"
                else ()
            )
            return (Cell(self.case), *prepared, *begun)
        if self.kind == "inversion":
            after = self.inversion.after
            return (
                Cell(self.case),
                *([Cell(self.case, "inversion", inversion=Inverting(after))] if after else []),
            )
        if self.kind == "trigger":
            return (Cell(self.case.surrogate),) if self.case.surrogate else ()
        return prepared

    @property
    def depth(self) -> int:
        """How many cells come before it, one after another."""
        return max((1 + cell.depth for cell in self.needs), default=0)


def searches(case: Case, search: Search | None) -> list[Cell]:
    """The inversions of a search: the detection, if there is one, and that of one class, if it is another."""
    if search is None:
        return []
    if search.target != "detect":
        return [Cell(case, "inversion", inversion=Inverting(search.inversion, search.target))]
    found = [Cell(case, "inversion", inversion=Inverting(search.detection))]
    if search.inversion != search.detection:
        found.append(
            Cell(case, "inversion", inversion=Inverting(search.inversion, after=search.detection))
        )
    return found


def make_cells(lab: Lab) -> list[Cell]:
    """Every cell in the order of the results: attack, seed, detection, evolution, defence.

    Raises what would go wrong later: an attack that this data set refuses, a defence that this model does not suit.
    """
    config, info = lab.config, lab.dataset.info
    params = jax.eval_shape(lab.model.init, jax.random.key(0)).params
    size = len(reserved_split(lab, config.seeds[0]).labels)
    if not lab.suspect:
        with _named("train"):
            epoch_plan(len(lab.dataset.train.labels), config.train.batch_size, drop_last=True)
    defenses = _make_defenses(lab, params, size)
    for choice in config.detections:
        with _named(f"detections: {choice.label}"):
            check_size(choice.config, size)
            check_classes(info)
    evolutions = _make_evolutions(lab, params, size, defenses)
    kept = [choice.label for choice, _ in evolutions]
    kept += [choice.label for choice, defense in defenses if isinstance(defense, TrainingDefense)]
    if config.loop.placement == "stream" and kept:
        raise ConfigError(
            f"loop.placement: stream is for models and repairs; {', '.join(kept)} keeps its images on the device"
        )
    cells, clean = [], None
    for choice in config.attacks:
        with _named(f"attacks: {choice.label}"):
            attack = ATTACKS[choice.name][1](choice.config, info)
            for other, defense in defenses:
                if isinstance(defense, TrainingDefense):
                    with _named(f"defenses: {other.label}"):
                        check_released(attack)
            for other, _ in evolutions:
                with _named(f"evolutions: {other.label}"):
                    _check_poison(lab, attack, other.config)
            evaluate = make_evaluate(lab.model, attack, info.num_classes, config.loop.eval_batch)
            if choice.name == "unknown" and not lab.suspect:
                raise ConfigError(
                    "is for a model from elsewhere (model.checkpoint); the control that is trained here is clean"
                )
            wanted = attack.preparation and attack.preparation.surrogate and not lab.suspect
            clean = clean or (_clean_training(lab) if wanted else None)
            for seed in config.seeds:
                surrogate = make_case(lab, *clean, seed) if wanted else None
                case = make_case(lab, choice, attack, evaluate, seed)._replace(surrogate=surrogate)
                cells += [
                    Cell(case),
                    *(
                        Cell(case, "inversion", choice, None, Inverting(choice.config))
                        for choice in config.detections
                    ),
                ]
                cells += [Cell(case, "lineage", *pair) for pair in evolutions]
                for other, defense in defenses:
                    cells.append(
                        Cell(
                            case,
                            "training" if isinstance(defense, TrainingDefense) else "repair",
                            other,
                            defense,
                        )
                    )
    if config.paths and not any(cell.case.attacked for cell in cells):
        labels = ", ".join(choice.label for choice in config.attacks)
        raise ConfigError(
            f"paths: {config.paths} shows the backdoor loss between models: none of the attacks ({labels}) has a trigger"
        )
    return cells


def _make_defenses(
    lab: Lab, params: Any, size: int
) -> list[tuple[Choice, Defense | TrainingDefense]]:
    """The defences of the config, checked against the parameters and the number of reserved images."""
    config, info = lab.config, lab.dataset.info
    defenses = []
    for choice in config.defenses:
        with _named(f"defenses: {choice.label}"):
            defenses.append((choice, DEFENSES[choice.name][1](choice.config, info)))
            if isinstance(defenses[-1][1], TrainingDefense):
                if lab.suspect:
                    raise ConfigError(
                        "trains from scratch: a model that is there already (model.checkpoint) is nothing to it"
                    )
                defenses[-1][1].check(len(lab.dataset.train.labels))
            else:
                defenses[-1][1].check(params, size)
    return defenses


def _make_evolutions(
    lab: Lab, params: Any, size: int, defenses: list[tuple[Choice, Defense | TrainingDefense]]
) -> list[tuple[Choice, Defense | None]]:
    """The evolutions of the config, each with the defence that is called between its updates."""
    config, info = lab.config, lab.dataset.info
    evolutions = []
    for choice in config.evolutions:
        with _named(f"evolutions: {choice.label}"):
            learned = check_evolution(choice.config, len(lab.fresh.labels), info)
            if (
                choice.config.learn == "statistics"
                and not jax.eval_shape(lab.model.init, jax.random.key(0)).batch_stats
            ):
                raise ConfigError(
                    f"learn: statistics moves nothing: {config.model.name} has no BatchNorm"
                )
            called = next(
                (defense for other, defense in defenses if other.label == choice.config.defense),
                None,
            )
            if isinstance(called, TrainingDefense):
                raise ConfigError(
                    f"defense: {choice.config.defense} trains from scratch, there is nothing to call between updates"
                )
            if called:
                called.check(params, min(size, learned))
            evolutions.append((choice, called))
    return evolutions


def _check_poison(lab: Lab, attack: Attack, config: EvolutionConfig) -> None:
    """Raises what would go wrong with an attack in a lineage."""
    if config.replay and lab.suspect:
        raise ConfigError(
            "replay: the set that a model from elsewhere (model.checkpoint) was trained on is not there"
        )
    if config.replay:
        check_released(attack)
    if config.persistent:
        for seed in lab.config.seeds:
            check_poison(
                lineage_key(seed), lab.fresh.labels, attack, config, lab.dataset.info.num_classes
            )


def _clean_training(lab: Lab) -> tuple[Choice, Attack, Callable[..., Counts]]:
    """The control `clean`, as attacks use it that find their trigger on a clean model: the same stage where it stands in the study."""
    if any(choice.label == "clean" and choice.name != "clean" for choice in lab.config.attacks):
        raise ConfigError(
            "its trigger is found on a model whose label is 'clean', which another attack has; rename that one"
        )
    config, construct = ATTACKS["clean"]
    attack = construct(config(), lab.dataset.info)
    evaluate = make_evaluate(
        lab.model, attack, lab.dataset.info.num_classes, lab.config.loop.eval_batch
    )
    return Choice("clean", "clean", config()), attack, evaluate


@contextlib.contextmanager
def _named(component: str) -> Iterator[None]:
    """Puts in front of an error which entry of the config it is about."""
    try:
        yield
    except D3JaxError as error:
        raise type(error)(f"{component}: {error}") from error


def make_case(
    lab: Lab, choice: Choice, attack: Attack, evaluate: Callable[..., Counts], seed: int
) -> Case:
    """The case of `attack` under `seed`. The recipe holds the trigger's contents too: a pattern may come from a file."""
    config, suspect = lab.config, lab.suspect
    attack_seed = config.attack_seed
    if attack_seed is None:
        attack_seed = config.seeds[0] if suspect else seed
    attacked = bool(np.any(attack.eligible(lab.dataset.train.labels)))
    recipe = {
        "format": FORMAT, "data": lab.data_hash, "model": config.model.name, "net": to_mapping(config.model.config),
        "attack": choice.name, "settings": to_mapping(choice.config), "train": to_mapping(config.train),
        "trigger": digest(attack.init(stream(jax.random.key(attack_seed), "trigger"))),
        "precision": lab.precision, "seed": attack_seed,
    }  # fmt: skip
    if suspect:
        del recipe["train"]
        recipe |= {
            "checkpoint": suspect.contents,
            "trigger": digest(trigger_for(suspect, attack, recipe, jax.random.key(attack_seed))),
        }
        return Case(choice.label, attack, evaluate, seed, attack_seed, recipe, None, 0, attacked)
    poisoned = poisoned_rows(jax.random.key(attack_seed), attack, lab.dataset.train.labels)
    share = poisoned_share(attack, poisoned, config.train.batch_size)
    return Case(
        choice.label,
        attack,
        evaluate,
        seed,
        attack_seed,
        recipe,
        share,
        int(poisoned.sum()),
        attacked,
    )
