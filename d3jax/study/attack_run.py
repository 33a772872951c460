"""Attack runs of a study: an attack under one seed, with the recipe of the victim to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..attacks.poisoning import poisoned_share
from ..config.loading import recipe_of, to_mapping
from ..config.study import Choice
from ..core.errors import ConfigError
from ..core.random import stream
from ..core.types import Attack, Model
from ..interop.external_model import ExternalModel, trigger_for
from ..metrics.attack_success import Counts, make_evaluate
from ..runtime.checkpoint import digest
from ..training.victim import poisoned_rows
from .context import StudyContext
from .registries import ATTACKS

FORMAT = 2
"""Version in every recipe; it is raised when the same config would compute other numbers."""


class AttackRun(NamedTuple):
    """One attack of a study under one seed, with the recipe of the backdoored model (the victim).

    `attack_seed` determines the victim, and `seed` the defences. `recipe` is everything that
    determines the victim, as plain data. `poison_rate` is the share of training images that are
    poisoned (None if the training set is not known). `poisoned` counts the rows that stay poisoned
    throughout the training. `attacked` says whether the attack has a trigger. `external` is the
    model that is read in place of training one. The function `evaluate(variables, trigger, test) ->
    Counts` is compiled once per attack.
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
    external: ExternalModel | None

    @property
    def knows_training(self) -> bool:
        """Return whether the training set of the model, with its poison, is known."""
        return self.poison_rate is not None

    @property
    def key(self) -> jax.Array:
        """Return the jax random key of the attack seed, for poisoning and training the victim."""
        return jax.random.key(self.attack_seed)


def make_run(
    context: StudyContext,
    choice: Choice,
    attack: Attack,
    evaluate: Callable[..., Counts],
    seed: int,
) -> AttackRun:
    """Return the `AttackRun` of an attack under one seed, with the recipe of the victim.

    The recipe includes a digest of the trigger, because its pattern may come from a file.
    """
    config, external = context.config, context.external(choice)
    known = context.knows_training(choice)
    attack_seed = config.attack_seed
    if external and known:
        attack_seed = external.about["seed"]
    elif attack_seed is None:
        attack_seed = config.seeds[0] if external else seed
    key, labels = jax.random.key(attack_seed), context.dataset.train.labels
    attacked = bool(np.any(attack.eligible(labels)))
    recipe = {
        "format": FORMAT,
        "data": context.data_hash,
        "model": config.model.name,
        "net": to_mapping(config.model.config),
        "attack": choice.name,
        "settings": recipe_of(choice.config),
        "precision": context.precision,
        "seed": attack_seed,
    }
    given = (choice.label, attack, evaluate, seed, attack_seed)
    batch_size = config.train.batch_size
    if external:
        trigger = digest(trigger_for(external, attack, recipe, key))
        recipe |= {"checkpoint": external.contents, "trigger": trigger}
        if not known:
            return AttackRun(*given, recipe, None, 0, attacked, external)
        batch_size = external.about["train"]["batch_size"]
    else:
        recipe |= {
            "train": recipe_of(config.train),
            "trigger": digest(attack.init(stream(key, "trigger"))),
        }
    poisoned = poisoned_rows(key, attack, labels)
    share = poisoned_share(attack, poisoned, batch_size)
    return AttackRun(*given, recipe, share, int(poisoned.sum()), attacked, external)


def make_clean_run(context: StudyContext, seed: int) -> AttackRun:
    """Return the `AttackRun` of the control `clean`, whose model is trained without poison.

    Attacks that need a clean model find their triggers on it. If the study also lists `clean` among
    its attacks, both share one clean model. Raises `ConfigError` if another attack has the label
    "clean".
    """
    attacks = context.config.attacks
    if any(choice.label == "clean" and choice.name != "clean" for choice in attacks):
        raise ConfigError(
            "finds its trigger on the model of the control 'clean', but another attack has the "
            "label 'clean'; rename that attack"
        )
    config, construct = ATTACKS["clean"]
    attack = construct(config(), context.dataset.info)
    return make_run(
        context, Choice("clean", "clean", config()), attack, evaluator(context, attack), seed
    )


def evaluator(
    context: StudyContext, attack: Attack, model: Model | None = None
) -> Callable[..., Counts]:
    """Build a function `evaluate(variables, trigger, test) -> Counts` for an attack on a model.

    `model` defaults to the model of the study.
    """
    classes = context.dataset.info.num_classes
    return make_evaluate(model or context.model, attack, classes, context.config.loop.eval_batch)


def targets_of(run: AttackRun, num_classes: int) -> list[int]:
    """Return the target classes of an attack run as sorted numbers; [] if it has no trigger."""
    labels = np.arange(num_classes)
    wanted = np.asarray(run.attack.relabel(jnp.asarray(labels)))
    return sorted(set(wanted[wanted != labels].tolist())) if run.attacked else []


def poison_flags(context: StudyContext, run: AttackRun) -> np.ndarray:
    """Return a boolean mask [N] that marks the training images that an attack run poisons."""
    return np.asarray(poisoned_rows(run.key, run.attack, context.dataset.train.labels))
