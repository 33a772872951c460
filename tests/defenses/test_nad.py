"""Tests of NAD: its attention maps, its loss, and the epoch that each rule keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo
from d3jax.defenses import NADConfig, make_nad
from d3jax.defenses.repair.nad import attention, distance_of_maps, layers_of
from d3jax.metrics.attack_success import triggered_split
from d3jax.models import PreActResNet18Config, VGG19BNConfig, WideResNetConfig
from d3jax.training.loop import Hooks

INFO = DataInfo("x", (32, 32, 3), tuple("abcd"), (0.5,) * 3, (0.5,) * 3)
MAP = jnp.array([[1.0, 2.0], [2.0, 0.0]])[None, :, :, None]


def test_settings_are_the_published_ones():
    authors, other = NADConfig(), NADConfig(preset="backdoorbench")
    assert authors.betas == (500, 1000, 1000) and authors.p == 2
    for schedule in (authors.teacher, authors.schedule):
        optimizer = schedule.optimizer
        assert (schedule.epochs, schedule.batch_size) == (20, 64)
        assert (optimizer.lr, optimizer.nesterov, optimizer.weight_decay) == (0.1, True, 1e-4)
    assert (other.teacher.epochs, other.schedule.epochs, other.rule) == (10, 10, "last")
    assert other.teacher.optimizer.schedule == "cosine_epoch_100"  # hardly falls in 10 epochs


def test_the_distance_of_two_maps_has_the_published_check_value():
    assert float(distance_of_maps(MAP, jnp.ones((1, 2, 2, 1)), 2.0)) == pytest.approx(
        0.1083252, abs=1e-6
    )


def test_a_map_of_one_place_has_no_gradient():
    pooled = jnp.array([[1.3, -0.4, 2.0]])
    gradient = jax.grad(lambda x: distance_of_maps(x, 0.2 * jnp.ones((1, 3)), 2.0))(pooled)
    assert float(distance_of_maps(pooled, 0.2 * jnp.ones((1, 3)), 2.0)) < 1e-9
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_maps_are_those_of_float64():
    features = np.random.default_rng(0).normal(size=(3, 4, 5, 6))
    for p in (1.0, 2.0, 4.0):
        maps = (np.abs(features) ** p).sum(-1).reshape(3, -1)
        maps /= np.sqrt((maps**2).sum(1, keepdims=True)) + 1e-6
        np.testing.assert_allclose(attention(jnp.asarray(features), p), maps, rtol=1e-5)


@pytest.mark.parametrize(
    "config, wanted",
    [
        (WideResNetConfig(), ("block1", "block2", "block3")),
        (PreActResNet18Config(width=2), ("block2", "block3", "block4")),
        (VGG19BNConfig(width=2), ("block2", "block3", "block4")),  # block5 has one pixel
    ],
)
def test_the_last_stages_with_a_map_are_compared(config, wanted):
    assert layers_of(NADConfig(), config.build(INFO)) == wanted


def test_unknown_layers_are_refused(fixture):
    repair = make_nad(NADConfig(), fixture.dataset.info)
    with pytest.raises(ConfigError, match="this model has 0 stages with a map, want 3"):
        repair.check(fixture.model, fixture.variables, 100)
    named = NADConfig(layers=("out0", "outt1"), betas=(1.0, 1.0))
    with pytest.raises(ConfigError, match="'outt1' is no activation of this model.*did you mean"):
        make_nad(named, fixture.dataset.info).check(fixture.model, fixture.variables, 100)
    with pytest.raises(ConfigError, match="betas: .* are 3, want one for each of the 1 layers"):
        NADConfig(layers=("out0",))


def short(rule):
    part = {"batch_size": 50, "augment": "none"}
    teacher = ScheduleConfig(steps=4, optimizer=OptimConfig(), **part)
    student = ScheduleConfig(steps=8, optimizer=OptimConfig(lr=0.05), **part)
    maps = {"layers": ("out0", "out1"), "betas": (500.0, 1000.0)}
    return NADConfig(rule=rule, teacher=teacher, schedule=student, **maps)


def test_the_oracle_reads_test_data_and_the_others_do_not(fixture):
    info, key, test = fixture.dataset.info, jax.random.key(0), fixture.dataset.test
    given = (key, fixture.model, fixture.variables, fixture.reserved)
    oracle = make_nad(short("oracle"), info)
    triggered = triggered_split(fixture.attack, fixture.trigger, test)
    found = oracle.repair(*given, test_set=test, triggered_set=triggered)
    assert fixture.evaluate(fixture.model, found.variables).acc > 0.7
    with pytest.raises(TypeError, match="rule: oracle reads test data"):
        oracle.repair(*given)
    needs = {rule: make_nad(short(rule), info).needs for rule in ("oracle", "defender", "last")}
    assert needs == {"oracle": ("test_set", "triggered_set"), "defender": (), "last": ()}


def test_the_students_maps_come_closer_to_the_teachers(fixture):
    config = short("last")
    longer = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=60))
    repair = make_nad(longer, fixture.dataset.info)
    given = (jax.random.key(0), fixture.model, fixture.variables, fixture.reserved)
    trace = repair.repair(*given, Hooks(log_every=1)).trace
    assert trace["distillation"][-5:].mean() < trace["distillation"][1:6].mean()


def test_a_schedule_shorter_than_an_epoch_keeps_a_trained_student(fixture):
    config = short("defender")
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=1))
    given = (jax.random.key(0), fixture.model, fixture.variables, fixture.reserved)
    found = make_nad(config, fixture.dataset.info).repair(*given).variables
    before, after = (jax.tree.leaves(one.params) for one in (fixture.variables, found))
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_betas_must_not_be_empty():
    with pytest.raises(ConfigError, match="betas: is empty"):
        NADConfig(betas=())
