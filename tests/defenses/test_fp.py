"""FP: how many features are pruned, by either rule and count, and that they stay at 0."""

import jax
import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.defenses import fp
from d3jax.defenses.repair.fp import count_to_prune


def known(**settings):
    """Return the count for ten features, of which one image each needs one, and the order 0 to 9."""
    features, labels = 2 * np.eye(10), np.arange(10)
    head = {"kernel": np.eye(10), "bias": np.linspace(0.09, 0, 10)}
    return count_to_prune(np.arange(10), features, labels, head, fp(rate=0.1, **settings))


def test_the_exact_count_stays_within_the_limit():
    # Image 0 goes to class 0 by its bias, so that pruning k features loses k − 1 of 10 images.
    assert known(drop=0.25, counting="exact") == 3
    assert known(drop=0.05, counting="exact") == 1
    assert known(drop=1.0, counting="exact") == 10


def test_backdoorbench_prunes_one_less_and_keeps_the_net_past_the_limit():
    # Step n prunes n − 1: steps 0 to 4 lose 0, 0, 0, 1, 2 images, step 5 loses 3 and is kept.
    assert known(drop=0.25) == 4
    assert known(drop=0.05) == 2


def test_pruned_features_stay_silent(dataset, model, victim):
    from d3jax.core.types import Split

    reserved = Split(*(part[:100] for part in dataset.train))
    for rule in ("defender", "oracle"):
        repair = fp(rule=rule, drop=0.3, rate=0.05).build(dataset.info)
        assert repair.needs == (("test_set",) if rule == "oracle" else ()) and repair.rule == rule
        given = {"test_set": dataset.test} if rule == "oracle" else {}
        found = repair.repair(jax.random.key(0), model, victim.variables, reserved, **given)
        kernel = np.asarray(found.variables.params["head"]["kernel"])
        count = int(found.trace["pruned"][-1])
        assert 0 < count == int((~kernel.any(1)).sum())


def test_one_reserved_image_is_not_enough_for_the_defender(dataset, model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="rule: defender holds images out"):
        fp().build(dataset.info).check(model, shapes, 1)
