"""An attack under one seed: what makes its victim, and what every node of it shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..attacks.poisoning import poisoned_share
from ..config.loading import to_mapping
from ..config.study import Choice
from ..core.errors import ConfigError
from ..core.random import stream
from ..core.types import Attack, Model
from ..interop.external_model import trigger_for
from ..metrics.attack_success import Counts, make_evaluate
from ..runtime.checkpoint import digest
from ..training.victim import poisoned_rows
from .context import StudyContext
from .registries import ATTACKS

FORMAT = 2
"""Part of every recipe; counted up when the same config would compute other numbers."""


class AttackRun(NamedTuple):
    """One attack under one seed; `attack_seed` makes the victim, `seed` the defences.

    `recipe` is all that makes the victim; `poison_rate` the share of its training images that are
    poisoned (None: trained elsewhere) and `poisoned` how many stay so; `attacked`: whether there is
    a trigger at all. `evaluate(variables, trigger, test) -> Counts` is compiled once an attack.
    """

    label: str
    attack: Attack
    evaluate: Callable[..., Counts]
    seed: int
    attack_seed: int
    recipe: dict[str, Any]
    poison_rate: float | None
    poisoned: int
    attacked: bool

    @property
    def key(self) -> jax.Array:
        """What all that is random in the victim follows from."""
        return jax.random.key(self.attack_seed)


def make_run(
    context: StudyContext,
    choice: Choice,
    attack: Attack,
    evaluate: Callable[..., Counts],
    seed: int,
) -> AttackRun:
    """Return the run of an attack under a seed.

    The recipe holds the trigger's contents too: a pattern may come from a file.
    """
    config, external = context.config, context.external
    attack_seed = config.attack_seed
    if attack_seed is None:
        attack_seed = config.seeds[0] if external else seed
    key, labels = jax.random.key(attack_seed), context.dataset.train.labels
    attacked = bool(np.any(attack.eligible(labels)))
    recipe = {
        "format": FORMAT,
        "data": context.data_hash,
        "model": config.model.name,
        "net": to_mapping(config.model.config),
        "attack": choice.name,
        "settings": to_mapping(choice.config),
        "precision": context.precision,
        "seed": attack_seed,
    }
    given = (choice.label, attack, evaluate, seed, attack_seed)
    if external:
        trigger = digest(trigger_for(external, attack, recipe, key))
        recipe |= {"checkpoint": external.contents, "trigger": trigger}
        return AttackRun(*given, recipe, None, 0, attacked)
    recipe |= {
        "train": to_mapping(config.train),
        "trigger": digest(attack.init(stream(key, "trigger"))),
    }
    poisoned = poisoned_rows(key, attack, labels)
    share = poisoned_share(attack, poisoned, config.train.batch_size)
    return AttackRun(*given, recipe, share, int(poisoned.sum()), attacked)


def make_clean_run(context: StudyContext, seed: int) -> AttackRun:
    """Return the run of the control `clean`, on whose model attacks find their triggers.

    Its victim is the control's where that stands in the study too.
    """
    attacks = context.config.attacks
    if any(choice.label == "clean" and choice.name != "clean" for choice in attacks):
        raise ConfigError(
            "its trigger is found on a model whose label is 'clean', which another attack has; "
            "rename that one"
        )
    config, construct = ATTACKS["clean"]
    attack = construct(config(), context.dataset.info)
    return make_run(
        context, Choice("clean", "clean", config()), attack, evaluator(context, attack), seed
    )


def evaluator(
    context: StudyContext, attack: Attack, model: Model | None = None
) -> Callable[..., Counts]:
    """Return `evaluate(variables, trigger, test) -> Counts` for an attack on a model.

    Without a `model` it is the study's.
    """
    classes = context.dataset.info.num_classes
    return make_evaluate(model or context.model, attack, classes, context.config.loop.eval_batch)


def targets_of(run: AttackRun, num_classes: int) -> list[int]:
    """Return the classes that the attack turns others into, sorted; none without a trigger."""
    labels = np.arange(num_classes)
    wanted = np.asarray(run.attack.relabel(jnp.asarray(labels)))
    return sorted(set(wanted[wanted != labels].tolist())) if run.attacked else []


def poison_flags(context: StudyContext, run: AttackRun) -> np.ndarray:
    """Return which training images [N] bool are poisoned."""
    return np.asarray(poisoned_rows(run.key, run.attack, context.dataset.train.labels))
