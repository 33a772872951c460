"""Tests of fine-pruning (FP): how many features are pruned, and that they stay at 0."""

import jax
import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.defenses import fp
from d3jax.defenses.repair.fp import count_to_prune


def known(**settings):
    """Return the number to prune of ten features in the order 0 to 9.

    Each of ten images needs one of the features.
    """
    features, labels = 2 * np.eye(10), np.arange(10)
    head = {"kernel": np.eye(10), "bias": np.linspace(0.09, 0, 10)}
    return count_to_prune(np.arange(10), features, labels, head, fp(rate=0.1, **settings))


def test_exact_counting_stays_within_the_allowed_drop_in_accuracy():
    # The bias alone predicts image 0 correctly, so pruning k features loses k − 1 of 10 images.
    assert known(drop=0.25, counting="exact") == 3
    assert known(drop=0.05, counting="exact") == 1
    assert known(drop=1.0, counting="exact") == 10


def test_backdoorbench_prunes_one_less_and_keeps_the_first_net_past_the_limit():
    # Step n prunes n − 1 features. Steps 0 to 4 lose 0, 0, 0, 1 and 2 images; step 5 loses 3, and
    # its network is kept.
    assert known(drop=0.25) == 4
    assert known(drop=0.05) == 2


def test_pruned_features_have_zero_weights_after_fine_tuning(dataset, model, victim):
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


def test_defender_rule_refuses_a_single_reserved_image(dataset, model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="rule: defender holds images out"):
        fp().build(dataset.info).check(model, shapes, 1)
