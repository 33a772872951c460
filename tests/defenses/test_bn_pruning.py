"""Tests of EP, BNP and RNP, which prune BatchNorm channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.types import TrainState
from d3jax.defenses import BNPConfig, EPConfig, RNPConfig, make_bnp, make_ep, make_rnp
from d3jax.defenses.repair.bnp import divergence
from d3jax.defenses.repair.ep import entropies
from d3jax.defenses.repair.forget import watch_accuracy
from d3jax.defenses.repair.pruning import inputs_of
from d3jax.training.loop import Hooks


def test_settings_are_the_published_ones():
    ep, other = EPConfig(), EPConfig(preset="backdoorbench")
    assert (ep.images, ep.width, ep.u, ep.silence) == (500, 0.01, 3.0, "scale")
    assert (other.images, other.width, other.silence) == (256, 0.1, "scale_and_bias")
    bnp, other = BNPConfig(), BNPConfig(preset="backdoorbench")
    assert (bnp.images, bnp.u, bnp.logarithm, bnp.silence) == (500, 3.0, "deviation", "scale")
    assert (other.logarithm, other.silence) == ("variance", "scale_and_bias")
    rnp, other = RNPConfig(), RNPConfig(preset="backdoorbench")
    assert (rnp.rule, rnp.least, rnp.weight) == ("defender", 0.2, 0.2)
    assert (rnp.unlearn.epochs, rnp.recover.epochs) == (20, 20)
    assert (rnp.unlearn.optimizer.lr, rnp.recover.optimizer.lr) == (0.01, 0.2)
    assert (other.rule, other.threshold) == ("fixed", 0.7)
    assert (other.unlearn.batch_size, other.recover.batch_size) == (256, 256)


@pytest.mark.parametrize("logarithm, wanted", [("deviation", 0.4431472), ("variance", 1.1362944)])
def test_bnps_divergence_has_the_published_check_values(logarithm, wanted):
    found = divergence(np.zeros(1), np.ones(1), np.ones(1), np.full(1, 4.0), logarithm)
    assert float(found[0]) == pytest.approx(wanted, abs=1e-7)


def test_the_divergence_of_equal_statistics_is_zero():
    values = np.array([0.3, 2.0])
    np.testing.assert_allclose(divergence(values, values, values, values, "deviation"), 0)


def test_entropies_of_known_distributions():
    draws = np.random.default_rng(0)
    two = np.where(draws.random(1000) < 0.5, 1.0, -1.0)
    even = draws.permutation(np.linspace(-1, 1, 1000))
    values = np.stack([two + draws.normal(0, 1e-3, 1000), even, np.full(1000, 5.0)], 1)
    found = entropies(values, 0.1)
    assert found[0] == pytest.approx(np.log(2), abs=0.25)  # a cluster may lie in two bins
    assert found[1] == pytest.approx(np.log(2 * np.sqrt(3) / 0.1), abs=0.1)
    assert found[2] == 0 and found[0] < found[1]


def marked(variables, path, value):
    """Return variables in which the running mean of one channel is moved by `value`."""
    stats = variables.batch_stats[path]
    moved = stats | {"mean": stats["mean"].at[3].add(value)}
    return variables._replace(batch_stats=variables.batch_stats | {path: moved})


def test_bnp_prunes_the_channel_with_foreign_statistics(fixture):
    variables = marked(fixture.variables, "BatchNorm_1", 25.0)
    repair = make_bnp(BNPConfig(images=100), fixture.dataset.info)
    found = repair.repair(jax.random.key(0), fixture.model, variables, fixture.reserved)
    scale = np.asarray(found.variables.params["BatchNorm_1"]["scale"])
    assert np.flatnonzero(scale == 0).tolist() == [3]
    bias = found.variables.params["BatchNorm_1"]["bias"]
    assert jnp.array_equal(bias, variables.params["BatchNorm_1"]["bias"])
    both = BNPConfig(preset="backdoorbench", images=100)
    found = make_bnp(both, fixture.dataset.info).repair(
        jax.random.key(0), fixture.model, variables, fixture.reserved
    )
    assert found.variables.params["BatchNorm_1"]["bias"][3] == 0


def test_ep_reads_the_training_set_and_prunes_a_channel_of_two_clusters(fixture):
    """The kernel of channel 3 is that of a channel which only the trigger's corner excites."""
    info, model = fixture.dataset.info, fixture.model
    repair = make_ep(EPConfig(images=400, width=0.1, u=1.5), info)
    assert repair.needs == ("training_set",)
    given = (jax.random.key(0), model, fixture.variables, fixture.reserved)
    found = repair.repair(*given, training_set=fixture.samples)
    rows = np.asarray(jax.random.permutation(jax.random.key(9), 400))
    images = np.asarray(fixture.samples.images)[rows]
    pruned = 0
    for path, values in inputs_of(model, fixture.variables, images).items():
        entropy = entropies(values.max((1, 2)), 0.1)
        low = entropy < entropy.mean() - 1.5 * entropy.std(ddof=1)
        scale = np.asarray(found.variables.params[path[0]]["scale"])
        assert np.array_equal(scale == 0, low)  # all images are in the batch, in any order
        pruned += int(low.sum())
    assert pruned == found.trace["pruned"][0] > 0


def test_the_accuracy_of_the_last_whole_epoch_is_watched():
    advance, carry = watch_accuracy(2), {"sum": jnp.float32(0), "accuracy": jnp.float32(1)}
    seen = []
    for step, accuracy in enumerate((0.5, 0.7, 0.1, 0.3), 1):
        state = TrainState(jnp.int32(step), None, None, None, carry)
        state, _ = advance(None, state, {"accuracy": jnp.float32(accuracy)}, None)
        carry = state.carry
        seen.append(round(float(carry["accuracy"]), 3))
    assert seen == [1.0, 0.6, 0.6, 0.2]


def test_rnp_stops_unlearning_below_its_bound_and_prunes_by_the_rule(fixture):
    part = {"batch_size": 50, "augment": "none"}
    config = RNPConfig(
        least=0.4,
        unlearn=ScheduleConfig(epochs=60, optimizer=OptimConfig(lr=0.5), **part),
        recover=ScheduleConfig(
            epochs=20, optimizer=OptimConfig(lr=0.2, weight_decay=0.0, schedule="constant"), **part
        ),
    )
    said = []
    given = (jax.random.key(0), fixture.model, fixture.variables, fixture.reserved)
    found = make_rnp(config, fixture.dataset.info).repair(*given, Hooks(say=said.append))
    trace = found.trace
    assert trace["unlearned"][0] <= 0.4 and "unlearned to an accuracy of" in said[-1]
    zeros = sum(
        int((np.asarray(found.variables.params[f"BatchNorm_{i}"]["scale"]) == 0).sum())
        for i in range(2)
    )
    assert zeros == trace["pruned"][0]
    assert fixture.evaluate(fixture.model, found.variables).acc >= 0.8 * fixture.before.acc
    assert jnp.array_equal(
        found.variables.params["head"]["kernel"], fixture.variables.params["head"]["kernel"]
    )
