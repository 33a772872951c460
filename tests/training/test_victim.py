"""Tests of training a victim on poisoned data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.attacks import badnets
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import Attack, Joint
from d3jax.metrics import make_evaluate
from d3jax.training import Hooks, train_backdoored
from d3jax.training.victim import poisoned_rows


def test_the_backdoor_is_learned(victim, dataset, model, attack):
    counts = make_evaluate(model, attack, 4)(victim.variables, victim.trigger, dataset.test)
    assert counts.acc >= 0.97 and counts.asr >= 0.95
    assert int(poisoned_rows(jax.random.key(0), attack, dataset.train.labels).sum()) == 40


def test_a_config_that_was_not_built_is_refused(dataset, model, attack):
    key = jax.random.key(0)
    for given in ((badnets(), attack), (model, badnets(rate=0.1)), (model, None)):
        with pytest.raises(ConfigError, match="want a d3jax.(Model|Attack), got a "):
            train_backdoored(key, given[0], dataset, given[1])
    with pytest.raises(ConfigError, match=r"got a BadNetsConfig; call its build\(info\)"):
        make_evaluate(model, badnets(), 4)


def test_training_is_determined_by_the_key(dataset, model, attack):
    config = TrainConfig(steps=12, batch_size=32, optimizer=OptimConfig(lr=0.05))
    one, same = (
        train_backdoored(jax.random.key(1), model, dataset, attack, config).variables
        for _ in range(2)
    )
    chex.assert_trees_all_equal(one, same)
    assert not jnp.array_equal(
        model.init(jax.random.key(1)).params["head"]["kernel"], one.params["head"]["kernel"]
    )


def brightened(optimizer):
    """Return an attack whose trigger is a bare array [3], which is added to the channels."""

    def poison(trigger, key, batch):
        images = jnp.where(
            batch.poisoned[:, None, None, None], batch.images + trigger, batch.images
        )
        joint = Joint(0.1 * jnp.sum(trigger**2), trigger) if optimizer else None
        return batch._replace(images=jnp.clip(images, 0, 1), joint=joint)

    return Attack(
        init=lambda key: jnp.full(3, 0.25),
        stamp=lambda trigger, images: jnp.clip(images + trigger, 0, 1),
        select=lambda key, labels: jnp.arange(len(labels)) % 4 == 0,
        relabel=jnp.zeros_like,
        poison=poison,
        optimizer=optimizer,
    )


@pytest.mark.parametrize("optimizer", [None, optax.adam(1e-2)])
def test_the_trigger_may_be_a_bare_array(optimizer, dataset, model):
    """The victim holds it, trained or not, although an array has no truth value."""
    config = TrainConfig(steps=3, batch_size=32, augment="none", optimizer=OptimConfig(lr=0.05))
    hooks = Hooks(log_every=1)
    attack = brightened(optimizer)
    victim = train_backdoored(jax.random.key(0), model, dataset, attack, config, hooks)
    assert victim.trigger.shape == (3,)
    moved = np.abs(np.asarray(victim.trigger) - 0.25)
    assert (moved > 1e-3).all() if optimizer else (moved == 0).all()
    assert ("penalty" in victim.trace) == bool(optimizer)
