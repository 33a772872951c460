"""Tests of UNIT: the capped network, its loss, and the weight that follows the accuracy."""

import jax
import jax.numpy as jnp
import numpy as np

from d3jax.core.images import as_float
from d3jax.core.types import DataInfo
from d3jax.defenses import UNITConfig, make_unit
from d3jax.defenses.repair.unit import adapted, capped, first_caps, sites_of
from d3jax.models import PreActResNet18Config, WideResNetConfig
from d3jax.training.loop import Hooks

INFO = DataInfo("x", (32, 32, 3), tuple("abcd"), (0.5,) * 3, (0.5,) * 3)


def test_settings_are_the_published_ones():
    config = UNITConfig()
    assert (config.spread, config.steps, config.rate, config.cost) == (4.0, 300, 1e-3, 1e-3)
    assert (config.patience, config.drop, config.held_out) == (5, 0.03, 0.2)


def test_the_sites_are_the_activations_after_a_relu():
    assert len(sites_of(WideResNetConfig().build(INFO))) == 13
    assert len(sites_of(PreActResNet18Config(width=2).build(INFO))) == 16


def test_infinite_caps_change_nothing_and_low_ones_cut(fixture):
    model, network = fixture.model, capped(fixture.model)
    assert capped(model) is network  # so that programs are compiled once
    images = as_float(jnp.asarray(fixture.dataset.test.images[:8]))
    whole = network.init(jax.random.key(0))
    same = network.apply(whole, images, train=False)
    plain = model.apply(model.init(jax.random.key(0)), images, train=False)
    assert jnp.array_equal(same.logits, plain.logits)
    low = jax.tree.map(lambda cap: jnp.full_like(cap, 0.125), whole.params["caps"])
    cut = network.apply(whole._replace(params=whole.params | {"caps": low}), images, train=False)
    for name in sites_of(model):
        assert float(cut.features[name].max()) <= 0.125 < float(plain.features[name].max())
    edited = network.apply(
        whole._replace(params=whole.params | {"caps": low}),
        images,
        train=False,
        edit={sites_of(model)[0]: lambda x: x + 5},
    )
    assert float(edited.features[sites_of(model)[0]].min()) == 0.125


def test_first_caps_are_mean_and_deviations_over_the_images(fixture, monkeypatch):
    monkeypatch.setattr("d3jax.defenses.repair.unit.EVAL_BATCH", 40)
    images = np.asarray(fixture.reserved.images)
    caps = first_caps(fixture.model, fixture.variables, images, 4.0)
    features = fixture.model.apply(
        fixture.variables, as_float(jnp.asarray(images)), train=False
    ).features
    for name in sites_of(fixture.model):
        values = np.asarray(features[name], np.float64)
        wanted = values.mean(0) + 4 * values.std(0, ddof=1)
        np.testing.assert_allclose(caps[name], wanted, rtol=1e-3, atol=1e-4)


def test_the_weight_follows_the_accuracy():
    config = UNITConfig(cost=1e-3, patience=2)
    carry = {"cost": jnp.float32(1e-3), "ups": jnp.int32(0), "downs": jnp.int32(0)}
    seen = []
    for good in (1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1):
        carry = adapted(carry, jnp.bool_(good), config)
        seen.append(float(carry["cost"]))
    down = 2**-1.5
    wanted = [1, 2, 2, 4, 4, 4 * down, 4 * down, 4 * down**2, 4 * down**2, 4 * down**3]
    wanted += [4 * down**3, 1, 1, 2]
    np.testing.assert_allclose(seen, 1e-3 * np.array(wanted), rtol=1e-5)


def test_caps_fall_and_the_held_out_accuracy_is_kept(fixture):
    config = UNITConfig(steps=60, rate=0.05, cost=0.1)
    repair = make_unit(config, fixture.dataset.info)
    given = (jax.random.key(0), fixture.model, fixture.variables, fixture.reserved)
    found = repair.repair(*given, Hooks(log_every=1))
    first = found.trace["caps"][0]
    kept = sum(float(jnp.mean(cap)) for cap in found.variables.params["caps"].values())
    assert kept < 0.7 * first
    network = repair.network(fixture.model)
    assert network is capped(fixture.model) and network is found.model
    counts = fixture.evaluate(network, found.variables)
    assert counts.acc > fixture.before.acc - 0.1
    same = {name: leaf for name, leaf in found.variables.params.items() if name != "caps"}
    before = fixture.variables.params
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, same, dict(before))))
