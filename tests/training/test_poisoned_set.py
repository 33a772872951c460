"""Tests of the poisoned training set that an attacker releases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.attacks import ATTACKS
from d3jax.core.errors import AttackError
from d3jax.core.images import as_float
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.victim import poisoned_rows

KEY = jax.random.key(3)


@pytest.mark.parametrize("name", ["badnets", "blended", "sig", "bpp", "wanet"])
def test_the_released_set_is_poisoned_where_it_is_flagged(name, dataset):
    config, construct = ATTACKS[name]
    attack = construct(
        config(rate=0.1, **({"rows": "fixed"} if name in ("bpp", "wanet") else {})), dataset.info
    )
    split, flags = poisoned_split(KEY, attack, dataset.train)
    np.testing.assert_array_equal(flags, poisoned_rows(KEY, attack, dataset.train.labels))
    np.testing.assert_array_equal(split.images[~flags], dataset.train.images[~flags])
    np.testing.assert_array_equal(split.labels[~flags], dataset.train.labels[~flags])
    assert (split.labels[flags] == 0).all() and split.images.dtype == np.uint8
    changed = (split.images[flags] != dataset.train.images[flags]).any((1, 2, 3))
    assert changed.mean() > 0.9 and flags.any()
    if name == "badnets":  # the trigger is the one that the test images get
        trigger = attack.init(jax.random.fold_in(KEY, 0))
        stamped = attack.stamp(trigger, as_float(jnp.asarray(dataset.train.images[flags])))
        np.testing.assert_array_equal(
            split.images[flags], np.round(np.asarray(stamped) * 255).astype(np.uint8)
        )


@pytest.mark.parametrize("name", ["wanet", "input_aware"])
def test_attacks_that_control_the_training_are_refused_a_released_set(name, dataset):
    config, construct = ATTACKS[name]
    with pytest.raises(
        AttackError, match="has no poisoned set that could be released: it controls the training"
    ):
        poisoned_split(KEY, construct(config(), dataset.info), dataset.train)
