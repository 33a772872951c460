"""Tests of FST against its formula, its sphere, and D3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.types import Batch, DataInfo, Model, Outputs, Split, Variables
from d3jax.defenses import FSTConfig, ScheduleConfig, make_fst
from d3jax.defenses.repair.d3 import distance, norm, select
from d3jax.defenses.repair.fst import fst_loss, redrawn
from d3jax.training import TrainData
from d3jax.training.loop import Hooks

W0 = jax.random.normal(jax.random.key(0), (12, 4))
PARAMS = {"body": {"kernel": jnp.ones((3, 5))}, "head": {"kernel": W0, "bias": jnp.ones(4)}}


def toy():
    def init(key):
        return Variables({"head": {"kernel": W0, "bias": jnp.zeros(4)}}, {})

    def apply(variables, images, *, train, edit=None):
        head = variables.params["head"]
        features = images.reshape(len(images), -1)
        return Outputs(features @ head["kernel"] + head["bias"], {}, {})

    return Model(init, apply)


def test_settings_are_the_published_ones():
    authors, other = FSTConfig(), FSTConfig(preset="backdoorbench")
    shown = [
        (one.alpha, one.redraw, one.rescale, one.schedule.epochs, one.schedule.batch_size)
        for one in (authors, other)
    ]
    assert shown == [(0.1, "head", False, 10, 128), (0.2, "weight", True, 100, 256)]
    assert (authors.schedule.optimizer.weight_decay, authors.schedule.augment) == (0.0, "auto")
    assert (other.schedule.optimizer.weight_decay, other.schedule.augment) == (5e-4, "none")


def test_the_loss_and_its_gradient_are_those_of_float64():
    draws = np.random.default_rng(1)
    images, labels = draws.random((8, 2, 2, 3)), draws.integers(0, 4, 8)
    kernel, bias = draws.normal(size=(12, 4)), draws.normal(size=4)
    reference, alpha = np.asarray(W0, np.float64), 0.3

    def value(kernel):
        logits = images.reshape(8, 12) @ kernel + bias
        shifted = logits - logits.max(1, keepdims=True)
        ce = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(8), labels]
        return ce.mean() + alpha * (kernel * reference).sum()

    step = 1e-5
    slopes = np.array(
        [
            (value(kernel + step * one) - value(kernel - step * one)) / (2 * step)
            for one in np.eye(48).reshape(48, 12, 4)
        ]
    ).reshape(12, 4)
    batch = Batch(jnp.asarray(images, jnp.float32), jnp.asarray(labels), jnp.zeros(8, bool))
    inputs = {"alpha": jnp.float32(alpha)}
    data = TrainData(None, None, {}, {"head": {"kernel": W0, "bias": jnp.zeros(4)}}, inputs)
    params = {"head": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias)}}
    found, gradient = jax.value_and_grad(
        lambda params: fst_loss(toy())(params, {}, batch, jax.random.key(0), data)[0]
    )(params)
    assert float(found) == pytest.approx(value(kernel), rel=1e-5)
    np.testing.assert_allclose(gradient["head"]["kernel"], slopes, rtol=1e-4, atol=1e-5)


def test_the_start_is_drawn_from_the_cited_range():
    limit = 12**-0.5
    head = redrawn(jax.random.key(1), PARAMS, FSTConfig())["head"]
    assert jnp.abs(head["kernel"]).max() <= limit and jnp.abs(head["bias"]).max() <= limit
    assert jnp.abs(head["kernel"]).max() > 0.9 * limit and not jnp.array_equal(
        head["bias"], PARAMS["head"]["bias"]
    )
    other = redrawn(jax.random.key(1), PARAMS, FSTConfig(preset="backdoorbench"))["head"]
    assert jnp.array_equal(other["bias"], PARAMS["head"]["bias"])
    assert float(norm(other["kernel"])) == pytest.approx(float(norm(W0)), rel=1e-6)
    assert redrawn(jax.random.key(1), PARAMS, FSTConfig(redraw="none")) is PARAMS


def test_the_weight_stays_on_the_sphere_and_moves_away():
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3), dtype=np.uint8)
    split = Split(images, (images[:, 0, 0, 0] // 64).astype(np.int32))
    info = DataInfo("toy", (2, 2, 3), tuple("abcd"), (0.0,) * 3, (1.0,) * 3)
    config = FSTConfig(alpha=1.0, schedule=ScheduleConfig(steps=80, batch_size=20, optimizer=LOW))
    model = toy()
    variables = model.init(jax.random.key(0))
    found = make_fst(config, info).repair(
        jax.random.key(2), model, variables, split, Hooks(log_every=1)
    )
    kernel = found.variables.params["head"]["kernel"]
    assert float(norm(kernel)) == pytest.approx(float(norm(W0)), rel=1e-5)
    assert found.trace["cosine"][-1] < -0.9 < found.trace["cosine"][0]


LOW = FSTConfig().schedule.optimizer


def test_fst_and_d3_push_along_the_same_tangent_of_the_sphere():
    radius = norm(W0)
    drawn = jax.random.normal(jax.random.key(5), W0.shape)
    kernel = drawn * radius / norm(drawn)
    head = {"kernel": kernel, "bias": jnp.zeros(4)}
    reference = {"head": {"kernel": W0, "bias": jnp.zeros(4)}}
    selection = select(reference)

    def tangent(gradient):
        unit = kernel / radius
        return gradient - jnp.sum(gradient * unit) * unit

    away = jax.grad(lambda p: -distance(p, reference, selection))({"head": head})
    push = jax.grad(lambda k: jnp.sum(k * W0))(kernel)
    ours, theirs = tangent(away["head"]["kernel"]), tangent(push)
    strength = 1 / norm(kernel - W0)
    np.testing.assert_allclose(ours, strength * theirs, rtol=1e-4, atol=1e-6)
