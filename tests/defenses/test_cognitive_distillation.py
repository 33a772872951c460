"""Tests of cognitive distillation: its loss, one step of Adam, and a model with a known trigger."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.core.errors import ConfigError
from d3jax.core.types import Model, Outputs, Split, Variables
from d3jax.defenses import CognitiveDistillationConfig, cognitive_distillation
from d3jax.defenses.sample_detection.cognitive_distillation import (
    distillation_loss,
    mask_batches,
    mask_loop,
    variation,
)
from d3jax.training import fit
from d3jax.training.step import TrainData

KEY = jax.random.key(0)


def linear_model(weights):
    """Return the model whose logits are the weighted sums of all pixels, and its variables."""

    def apply(variables, images, *, train, edit=None):
        return Outputs(images.reshape(len(images), -1) @ variables.params, {}, {})

    variables = Variables(jnp.asarray(weights, jnp.float32), {})
    return Model(lambda key: variables, apply), variables


def by_hand(raw, images, colours, weights, gamma, beta):
    """Return the loss of masks and its gradient by z for a linear model, in NumPy."""
    mask = (np.tanh(raw) + 1) / 2
    size, pixels = len(raw), raw.shape[1] * raw.shape[2]
    apart = ((1 - mask) * (colours - images)).reshape(size, -1) @ weights  # f(hidden) − f(x)
    down, right = np.diff(mask, axis=1), np.diff(mask, axis=2)
    tv = ((down**2).sum() + (right**2).sum()) / pixels
    value = np.abs(apart).mean(1).sum() + gamma * mask.sum() + beta * tv
    back = (np.sign(apart) / weights.shape[1]) @ weights.T
    slope = (back.reshape(images.shape) * (images - colours)).sum(-1, keepdims=True) + gamma
    for axis, change in ((1, down), (2, right)):
        before, after = [[(0, 0)] * 4 for _ in range(2)]
        before[axis], after[axis] = (1, 0), (0, 1)
        slope += beta * 2 / pixels * (np.pad(change, before) - np.pad(change, after))
    return value, slope * (1 - np.tanh(raw) ** 2) / 2


def test_settings_are_the_published_ones():
    config = CognitiveDistillationConfig()
    assert (config.preset, config.steps, config.rate) == ("authors", 100, 0.1)
    assert (config.gamma, config.beta, config.spread) == (0.01, 1.0, 1.0)
    assert CognitiveDistillationConfig(preset="backdoorbench").beta == 10.0


def test_the_variation_is_the_sum_of_squared_differences_over_the_pixels():
    mask = jnp.array([[0.0, 1.0], [0.5, 0.0]]).reshape(1, 2, 2, 1)
    # (0 → 0.5)², (1 → 0)² downwards, (0 → 1)², (0.5 → 0)² to the right
    assert float(variation(mask)[0]) == pytest.approx((0.25 + 1 + 1 + 0.25) / 4)


def test_the_loss_and_its_gradient_equal_the_formula_for_a_linear_model(rng):
    weights = rng.normal(size=(3 * 4 * 2, 5))
    model, variables = linear_model(weights)
    raw, colours = rng.normal(size=(6, 3, 4, 1)), rng.random((6, 1, 1, 2))
    images = rng.random((6, 3, 4, 2))
    logits = images.reshape(6, -1) @ weights
    batch = [jnp.asarray(one, jnp.float32) for one in (images, logits, colours)]
    data = TrainData(None, None, {}, variables, {"gamma": 0.03, "beta": 7.0})
    loss = distillation_loss(model)
    value, slope = jax.value_and_grad(lambda raw: loss(raw, {}, batch, KEY, data)[0])(
        jnp.asarray(raw, jnp.float32)
    )
    wanted = by_hand(raw, images, colours, weights, 0.03, 7.0)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-5)
    np.testing.assert_allclose(slope, wanted[1], atol=1e-5)


def test_two_steps_are_those_of_adam_with_both_decays_at_a_tenth(rng):
    weights = rng.normal(size=(12, 3))
    model, variables = linear_model(weights)
    levels = rng.integers(0, 256, (4, 2, 2, 3), np.uint8)
    config = CognitiveDistillationConfig(steps=2, gamma=0.2, beta=3.0)
    loop = mask_loop(KEY, model, variables, levels, config)
    found = np.asarray(fit(loop)[0].carry)
    raw, first, second = np.ones((4, 2, 2, 1)), 0.0, 0.0
    for step in range(2):
        batch = mask_batches(2, 4)(KEY, jnp.int32(step), loop.data)
        images, _, colours = (np.asarray(one, np.float64) for one in batch)
        _, slope = by_hand(raw, images, colours, weights, 0.2, 3.0)
        first, second = 0.1 * first + 0.9 * slope, 0.1 * second + 0.9 * slope**2
        rest = 1 - 0.1 ** (step + 1)
        raw = raw - 0.1 * first / rest / (np.sqrt(second / rest) + 1e-8)
    sizes = ((np.tanh(raw) + 1) / 2).sum((1, 2, 3))
    np.testing.assert_allclose(found, sizes, atol=1e-5)


def test_colours_are_uniform_and_new_for_every_image_and_step():
    images = jnp.zeros((300, 2, 2, 3), jnp.uint8)
    data = TrainData(None, None, {}, None, {"images": images, "logits": jnp.zeros((300, 4))})
    draw = mask_batches(2, 300)
    first, second = (np.asarray(draw(KEY, jnp.int32(step), data)[2]).ravel() for step in range(2))
    both = np.concatenate([first, second])
    assert len(np.unique(both)) > 1790
    np.testing.assert_allclose([both.mean(), both.std()], [1 / 2, 12**-0.5], atol=0.02)
    assert 0 <= both.min() and both.max() < 1


def test_a_mask_does_not_depend_on_the_batch_size(fixture):
    images = fixture.samples.images[:7]
    sizes = []
    for batch_size in (3, 7):
        config = CognitiveDistillationConfig(steps=4, batch_size=batch_size)
        loop = mask_loop(KEY, fixture.model, fixture.variables, images, config)
        assert loop.steps == {3: 12, 7: 4}[batch_size]
        sizes.append(np.asarray(fit(loop)[0].carry))
    np.testing.assert_allclose(*sizes, rtol=1e-4)
    assert np.ptp(sizes[0]) > 0


def gated_fixture(fixture):
    """Return the fixture with a model whose logits depend on the trigger alone where it is there.

    Without the trigger the logits are sums over all pixels.
    """
    stamp, trigger = fixture.attack.stamp, fixture.trigger
    shape = fixture.dataset.info.shape
    black, white = jnp.zeros((1, *shape)), jnp.ones((1, *shape))
    where = (stamp(trigger, black) == stamp(trigger, white)).astype(jnp.float32)
    pattern = stamp(trigger, black)
    weights = np.random.default_rng(0).normal(size=(np.prod(shape), 4)) / 2

    def apply(variables, images, *, train, edit=None):
        apart = (jnp.abs(images - pattern) * where).sum((1, 2, 3)) / where.sum()
        gate = jax.nn.sigmoid(40 * (0.15 - apart))[:, None]
        sums = images.reshape(len(images), -1) @ variables.params
        return Outputs(gate * jnp.array([9.0, 0, 0, 0]) + (1 - gate) * sums, {}, {})

    variables = Variables(jnp.asarray(weights, jnp.float32), {})
    return fixture._replace(model=Model(lambda key: variables, apply), variables=variables)


@pytest.mark.parametrize("preset", ["authors", "backdoorbench"])
def test_a_trigger_that_decides_the_output_alone_has_a_small_mask(fixture, preset):
    gated = gated_fixture(fixture)
    detector = cognitive_distillation(preset=preset).build(fixture.dataset.info)
    found = testing.check_sample_detector(detector, gated, auroc=0.99)
    assert found.flagged[gated.poisoned].mean() > 0.9
    assert found.flagged[~gated.poisoned].mean() < 0.25
    pixels = np.prod(fixture.dataset.info.shape[:2])
    assert (-pixels < found.scores).all() and (found.scores < 0).all()


def test_flags_are_below_the_mean_of_the_reserved_images_by_their_deviation(fixture):
    config = CognitiveDistillationConfig(steps=3, spread=0.5)
    detector = config.build(fixture.dataset.info)
    given = (KEY, fixture.model, fixture.variables)
    few = Split(*(part[:60] for part in fixture.samples))
    found = detector.score(*given, few, fixture.reserved)
    both = Split(*(np.concatenate(pair) for pair in zip(few, fixture.reserved, strict=True)))
    sizes = -detector.score(*given, both, fixture.reserved).scores
    clean = sizes[60:]
    least = clean.mean() - 0.5 * clean.std(ddof=1)
    np.testing.assert_allclose(-found.scores, sizes[:60], rtol=1e-4)
    np.testing.assert_array_equal(found.flagged, sizes[:60] < least)
    assert 0 < found.flagged.sum() < 60


def test_one_reserved_image_is_refused(fixture):
    check = cognitive_distillation().build(fixture.dataset.info).check
    with pytest.raises(ConfigError, match="reserved: 1 clean images give no spread"):
        check(fixture.model, fixture.variables, 100, 1)
    check(fixture.model, fixture.variables, 100, 2)


def test_masks_continued_from_a_step_are_exact(fixture):
    config = CognitiveDistillationConfig(steps=4, batch_size=5)
    images = fixture.samples.images[:8]
    loop = mask_loop(KEY, fixture.model, fixture.variables, images, config)
    whole, _ = fit(loop)
    part, _ = fit(loop._replace(steps=6))
    np.testing.assert_array_equal(fit(loop._replace(state=part))[0].carry, whole.carry)
