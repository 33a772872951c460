"""Tests of NPD: the polarizer, its adversarial examples and the terms of its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import DataInfo
from d3jax.defenses import NPDConfig, make_npd
from d3jax.defenses.repair.npd import (
    PLUG,
    away,
    perturbed,
    place_of,
    polarized,
    second_class,
)
from d3jax.models import (
    PreActResNet18Config,
    ResNetConfig,
    VGG19BNConfig,
    WideResNetConfig,
)
from d3jax.training.loop import Hooks

INFO = DataInfo("x", (32, 32, 3), tuple("abcd"), (0.5,) * 3, (0.5,) * 3)


def test_settings_are_the_published_ones():
    config = NPDConfig()
    assert (config.bound, config.rate, config.steps, config.enough) == (3.0, 0.1, 2, 0.6)
    lams = (config.lam_clean, config.lam_same, config.lam_second, config.lam_target)
    assert lams == (1.0, 0.4, 0.4, 0.4)
    assert (config.warm_up.epochs, config.warm_up.optimizer.lr) == (5, 1e-4)
    assert (config.schedule.epochs, config.schedule.batch_size) == (50, 128)
    assert config.schedule.optimizer == OptimConfig(schedule="constant")


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (PreActResNet18Config(width=2), "block4_2/relu1"),  # published: before layer4.1.conv1
        (WideResNetConfig(depth=10, width=1), "block3_1/relu1"),
        (ResNetConfig(width=2), "block4_1"),
        (VGG19BNConfig(width=2), "relu5_2"),
    ],
)
def test_the_polarizer_is_before_the_last_blocks_first_convolution(config, place):
    assert place_of("", config.build(INFO)) == place


@pytest.mark.parametrize("p, wanted", [(0.0, -0.0001), (0.5, 0.69295), (1.0, 9.2103)])
def test_the_terms_have_the_published_check_values(p, wanted):
    found = away(jnp.array([[1 - p, p]]), jnp.array([1]))
    assert float(found[0]) == pytest.approx(wanted, rel=2e-3, abs=2e-7)


def test_the_second_class_is_the_most_likely_one_but_the_label():
    logits = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 5.0, 7.0]])
    assert second_class(logits, jnp.array([0, 1, 2])).tolist() == [1, 0, 1]


def test_the_first_step_has_the_published_size_in_each_pixel():
    """All slopes have one sign, and ±0.1 in 3,072 values has an L2 norm of 5.54."""

    def logits_of(images):
        total = images.mean((1, 2, 3))
        return jnp.stack([total * 0, total], 1)

    images, labels = jnp.full((2, 32, 32, 3), 0.5), jnp.array([1, 1])
    moved, target = perturbed(logits_of, images, labels, NPDConfig(steps=1))
    assert target.tolist() == [0, 0]
    np.testing.assert_allclose(images - moved, 0.054127, rtol=1e-4)
    size = jnp.linalg.norm((moved - images).reshape(2, -1), axis=1)
    np.testing.assert_allclose(size, 3.0, rtol=1e-5)
    bright = perturbed(logits_of, images * 0, labels, NPDConfig(steps=1))[0]
    assert float(bright.min()) == 0.0  # clipped to [0, 1]


def test_steps_end_when_enough_images_reach_their_target():
    def logits_of(images):
        total = images.mean((1, 2, 3))
        return jnp.stack([total, total * 0 + 0.49], 1)

    images, labels = jnp.full((4, 8, 8, 3), 0.5), jnp.zeros(4, int)
    one, _ = perturbed(logits_of, images, labels, NPDConfig(steps=1, rate=0.02))
    five, _ = perturbed(logits_of, images, labels, NPDConfig(steps=5, rate=0.02))
    assert float(images[0, 0, 0, 0] - one[0, 0, 0, 0]) == pytest.approx(0.02)
    assert jnp.array_equal(one, five)  # after the first step all images are classified as 1
    never, _ = perturbed(logits_of, images, labels, NPDConfig(steps=5, rate=0.02, enough=1.0))
    assert float(never.mean()) < float(one.mean())


def test_the_first_polarizer_passes_everything(fixture):
    model, network = fixture.model, polarized(fixture.model, "out0")
    assert polarized(model, "out0") is network
    images = as_float(jnp.asarray(fixture.dataset.test.images[:8]))
    whole, key = network.init(jax.random.key(0)), jax.random.key(0)
    same = network.apply(whole, images, train=False)
    plain = model.apply(model.init(key), images, train=False)
    np.testing.assert_allclose(same.logits, plain.logits, atol=1e-3)
    trained = network.apply(whole, images, train=True)
    own = plain.features["out0"]
    np.testing.assert_allclose(
        trained.batch_stats[PLUG]["mean"], 0.1 * own.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    for name in ("BatchNorm_0", "BatchNorm_1"):  # the model itself does not move
        for part in ("mean", "var"):
            assert jnp.array_equal(trained.batch_stats[name][part], whole.batch_stats[name][part])


def test_only_the_polarizer_is_trained(fixture):
    short = {"steps": 12, "batch_size": 50, "augment": "none"}
    config = NPDConfig(
        place="out0",
        bound=1.0,
        warm_up=ScheduleConfig(**short, optimizer=OptimConfig(lr=1e-4, schedule="constant")),
        schedule=ScheduleConfig(**short, optimizer=OptimConfig(schedule="constant")),
    )
    repair = make_npd(config, fixture.dataset.info)
    given = (jax.random.key(0), fixture.model, fixture.variables, fixture.reserved)
    found = repair.repair(*given, Hooks(log_every=1))
    assert len(found.trace["clean_loss"]) == 12
    same = {name: leaf for name, leaf in found.variables.params.items() if name != PLUG}
    before = dict(fixture.variables.params)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, same, before)))
    network = repair.network(fixture.model)
    assert network is found.model
    assert fixture.evaluate(network, found.variables).acc > fixture.before.acc - 0.1


def test_unknown_places_are_refused(fixture):
    repair = make_npd(NPDConfig(place="out7"), fixture.dataset.info)
    with pytest.raises(ConfigError, match="place: 'out7' is no activation of this model"):
        repair.check(fixture.model, fixture.variables, 100)
