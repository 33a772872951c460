"""Checks that find the errors of a study's config before any model is trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config.study import Choice
from ..core.errors import AttackError, ConfigError, D3JaxError, did_you_mean, names
from ..core.types import (
    Attack,
    InputDetector,
    ModelDetector,
    Repair,
    SampleDetector,
    TrainingDefense,
)
from ..data.batching import epoch_plan
from ..evolution.config import EvolutionConfig
from ..evolution.fresh_sets import check_evolution, check_poison, evolution_key
from ..runtime.main_memory import check_fits
from ..training.poisoned_set import check_released
from .context import StudyContext, fresh_split, reserved_split
from .registries import DEFENSES, DETECTIONS

AnyDefense = Repair | TrainingDefense
AnyDetector = SampleDetector | InputDetector | ModelDetector


class Methods(NamedTuple):
    """The methods of a study, built from its config: `defenses`, `detections` and `evolutions`.

    An evolution comes with the defence that it calls between updates, or None.
    """

    defenses: list[tuple[Choice, AnyDefense]]
    detections: list[tuple[Choice, AnyDetector]]
    evolutions: list[tuple[Choice, Repair | None]]


def make_methods(context: StudyContext) -> Methods:
    """Build the defences, detectors and evolutions of a study; check them against data and model.

    Raises `ConfigError` if one of them does not suit the study.
    """
    config = context.config
    shapes = jax.eval_shape(context.model.init, jax.random.key(0))
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params))
    check_fits(12 * weights, f"model: {weights:,} weights, their gradients and momenta")
    size = len(reserved_split(context, config.seeds[0]).labels)
    if any(context.external(choice) is None for choice in config.attacks):
        with named("train"):
            epoch_plan(len(context.dataset.train.labels), config.train.batch_size, drop_last=True)
    defenses = [
        (choice, _make_defense(context, choice, shapes, size)) for choice in config.defenses
    ]
    detections = [
        (choice, _make_detector(context, choice, shapes, size)) for choice in config.detections
    ]
    known = {choice.label: defense for choice, defense in defenses}
    evolutions = [
        (choice, _check_evolution(context, choice, shapes, size, known))
        for choice in config.evolutions
    ]
    methods = Methods(defenses, detections, evolutions)
    _check_placement(context, methods)
    return methods


def _make_defense(context: StudyContext, choice: Choice, shapes: Any, size: int) -> AnyDefense:
    """Build one defence from an entry of the config, and check that it suits model and data."""
    with named(f"defenses: {choice.label}"):
        defense = DEFENSES[choice.name][1](choice.config, context.dataset.info)
        if not isinstance(defense, TrainingDefense):
            defense.check(context.model, shapes, size)
            _check_needs(context, defense)
        else:
            _check_known(context, "trains from scratch on the images that the model was trained on")
            defense.check(context.model, shapes, len(context.dataset.train.labels), size)
        return defense


def _check_known(context: StudyContext, use: str) -> None:
    """Raise `ConfigError` if the training set of a model in the study is not known.

    `use` says what a method does with these images.
    """
    for choice in context.config.attacks:
        if not context.knows_training(choice):
            raise ConfigError(
                f"{use}, which are not available for the external model of {choice.label}"
            )


def _check_needs(context: StudyContext, repair: Repair) -> None:
    """Raise `ConfigError` if a study lacks the training set or detector that a repair needs."""
    if "training_set" in repair.needs:
        _check_known(context, "needs the images that the model was trained on")
    label = repair.search.detector if repair.search else ""
    if not label:
        return
    made = {
        one.label: DETECTIONS[one.name][1](one.config, context.dataset.info)
        for one in context.config.detections
    }
    models = [name for name, detector in made.items() if isinstance(detector, ModelDetector)]
    if label not in models:
        raise ConfigError(
            f"detector: {label!r} is not a model detector in `detections`; the model detectors "
            f"there are {names(models) or 'none'}{did_you_mean(label, models)}"
        )


def _make_detector(context: StudyContext, choice: Choice, shapes: Any, size: int) -> AnyDetector:
    """Build one detector from an entry of the config, and check that it suits model and data."""
    with named(f"detections: {choice.label}"):
        detector = DETECTIONS[choice.name][1](choice.config, context.dataset.info)
        if not isinstance(detector, SampleDetector):
            detector.check(context.model, shapes, size)
        else:
            _check_known(context, "scores the images that the model was trained on")
            known, scored = len(context.dataset.train.labels), context.config.scored
            if scored > known:
                raise ConfigError(f"scored: {scored} is more than the {known} training images")
            detector.check(context.model, shapes, scored or known, size)
        return detector


def _check_evolution(
    context: StudyContext, choice: Choice, shapes: Any, size: int, known: dict[str, AnyDefense]
) -> Repair | None:
    """Check one entry of `evolutions`; return the repair that it calls between updates, or None.

    Raises `ConfigError` if the evolution or its defence does not suit the data or the model.
    """
    config: EvolutionConfig = choice.config
    with named(f"evolutions: {choice.label}"):
        learned = check_evolution(config, len(fresh_split(context).labels), context.dataset.info)
        if config.learn == "statistics" and not shapes.batch_stats:
            model = context.config.model.name
            raise ConfigError(f"learn: statistics changes nothing: {model} has no BatchNorm")
        called = None if config.defense is None else known.get(config.defense)
        if isinstance(called, TrainingDefense):
            raise ConfigError(
                f"defense: {config.defense} trains from scratch, so it cannot be called between "
                "updates"
            )
        if called:
            called.check(context.model, shapes, min(size, learned))
            if missing := set(called.needs) - {"target"}:
                raise ConfigError(
                    f"defense: {config.defense} needs {', '.join(sorted(missing))}, which is not "
                    "available between updates"
                )
        return called


def _check_placement(context: StudyContext, methods: Methods) -> None:
    """Raise `ConfigError` if images are streamed to methods that keep them on the device."""
    kept = [choice.label for choice, _ in methods.evolutions]
    kept += [
        choice.label for choice, defense in methods.defenses if isinstance(defense, TrainingDefense)
    ]
    if context.config.loop.placement == "stream" and kept:
        raise ConfigError(
            f"loop.placement: stream is for models and repairs; {', '.join(kept)} keeps its "
            "images on the device"
        )


def check_attack(context: StudyContext, choice: Choice, attack: Attack, methods: Methods) -> None:
    """Raise `D3JaxError` if an attack does not suit the data set or the methods of a study."""
    labels = context.dataset.test.labels
    if attack.preparation and context.external(choice) is None:
        attack.preparation.check(len(context.dataset.train.labels))
    if np.any(attack.eligible(context.dataset.train.labels)):
        wanted = np.asarray(attack.relabel(jnp.asarray(labels)))
        if not np.any(wanted != np.asarray(labels)):
            raise ConfigError(
                "every test image is of the class that the attacker wants for it: none is left to "
                "measure the ASR on"
            )
    for other, defense in methods.defenses:
        if isinstance(defense, TrainingDefense):
            with named(f"defenses: {other.label}"):
                check_released(attack)
    for other, detector in methods.detections:
        if isinstance(detector, SampleDetector):
            with named(f"detections: {other.label}"):
                check_released(attack)
    for other, _ in methods.evolutions:
        with named(f"evolutions: {other.label}"):
            _check_poison(context, choice, attack, other.config)
    if choice.name == "unknown" and context.external(choice) is None:
        raise ConfigError(
            "is for an external model (model.checkpoint); for a control that is trained here use "
            "the attack clean"
        )


def _check_poison(
    context: StudyContext, choice: Choice, attack: Attack, config: EvolutionConfig
) -> None:
    """Raise `D3JaxError` if an attack cannot poison, or be replayed in, an evolution run.

    The same if its trigger cannot be stamped on fresh or drifted images.
    """
    if attack.copies_only and (config.persistent or (config.drift and not config.trigger_first)):
        setting = (
            f"persistent: {config.persistent:g}" if config.persistent else "trigger_first: false"
        )
        raise AttackError(
            f"{setting} stamps other images than the test images, but this attack's trigger is "
            "known only by triggered copies of these"
        )
    if config.replay and not context.knows_training(choice):
        raise ConfigError(
            "replay: the training set of an external model (model.checkpoint) is not available"
        )
    if config.replay:
        check_released(attack)
    for seed in context.config.seeds if config.persistent else ():
        classes = context.dataset.info.num_classes
        check_poison(evolution_key(seed), fresh_split(context).labels, attack, config, classes)


def check_paths(context: StudyContext, attacked: Sequence[bool]) -> None:
    """Raise `ConfigError` if the setting `paths` is used although no attack has a trigger.

    It asks for backdoor losses between models, which need a trigger.
    """
    paths, attacks = context.config.paths, context.config.attacks
    if paths and not any(attacked):
        labels = ", ".join(choice.label for choice in attacks)
        raise ConfigError(
            f"paths: {paths} shows the backdoor loss between models: none of the attacks "
            f"({labels}) has a trigger"
        )


@contextlib.contextmanager
def named(component: str) -> Iterator[None]:
    """Return a context that puts the name of a config entry before a `D3JaxError`'s message."""
    try:
        yield
    except D3JaxError as error:
        raise type(error)(f"{component}: {error}") from error
