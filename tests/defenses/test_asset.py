"""Tests of ASSET: its statistics, the two networks' losses and steps, and the shared fixture."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.random import stream
from d3jax.core.types import Variables
from d3jax.defenses import ASSETConfig, asset
from d3jax.defenses.sample_detection.asset import (
    Suspects,
    ascent_loss,
    asset_loop,
    init_valuation,
    learned_values,
    suspect_batches,
    valuation,
    variance_loss,
)
from d3jax.defenses.sample_detection.outlyingness import (
    adjusted_outlyingness,
    medcouple,
    upper_threshold,
    whiskers,
)
from d3jax.training import Hooks, fit
from d3jax.training.step import TrainData

KEY = jax.random.key(0)
EVEN = [1.0, 2, 3, 4, 5, 6, 7, 8, 30]
SKEWED = [0.50, 0.51, 0.52, 0.53, 0.55, 0.58, 0.60, 0.90]


def test_settings_are_those_of_backdoorbench():
    config = ASSETConfig()
    assert (config.rounds, config.batch_size, config.rate) == (1, 256, 1e-4)
    assert (config.inner_steps, config.hidden, config.outlier) == (100, 128, 2.0)


def test_the_medcouple_and_the_outlyingness_have_the_published_check_values():
    even, skewed = jnp.array(EVEN), jnp.array(SKEWED)
    assert float(medcouple(even)) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(whiskers(even), [-3, 13], atol=1e-5)
    assert float(adjusted_outlyingness(even)[-1]) == pytest.approx(3.125, abs=1e-5)
    assert float(medcouple(skewed)) == pytest.approx(1 / 3, abs=1e-5)
    assert float(whiskers(skewed)[1]) == pytest.approx(0.86023, abs=1e-5)
    found = adjusted_outlyingness(skewed)
    assert float(found[-1]) == pytest.approx(1.1204, abs=1e-4)
    assert float(found[3]) == 0  # the median is the lower of the middle two
    mirrored = adjusted_outlyingness(-even)
    assert float(mirrored[-1]) == pytest.approx(3.125, abs=1e-5)


def medcouple_by_hand(values):
    """Return the medcouple of a list of numbers, pair by pair."""
    middle, kernel = np.median(values), []
    below = sorted(one for one in values if one <= middle)
    above = sorted(one for one in values if one >= middle)
    ties = sum(one == middle for one in values)
    for i, b in enumerate(above):
        for j, a in enumerate(below):
            if a == b == middle:
                place = j - (len(below) - ties)
                kernel.append(np.sign(i + place - ties + 1))
            else:
                kernel.append(((b - middle) - (middle - a)) / (b - a))
    return np.median(kernel)


def test_the_medcouple_equals_the_one_computed_pair_by_pair(rng):
    compute, drawn = jax.jit(medcouple), rng.exponential(size=(6, 31))
    for values in [*drawn, *-drawn, *drawn[:, :8]]:
        found = float(compute(jnp.asarray(values, jnp.float32)))
        assert found == pytest.approx(medcouple_by_hand(values), abs=1e-4)
    assert float(compute(jnp.asarray(drawn[0]))) > 0.05  # skewed to the right
    for values in ([0, 1, 2, 2, 2, 2, 5, 9], [2] * 5 + [3] * 3, [0, 1, 1, 1, 1, 7, 9, 9], [3] * 8):
        found = float(compute(jnp.asarray(values, jnp.float32)))
        assert found == pytest.approx(medcouple_by_hand(values), abs=1e-6)


def test_equal_numbers_are_no_outliers():
    assert adjusted_outlyingness(jnp.full(5, 0.3)).tolist() == [0] * 5


def test_the_threshold_has_the_published_check_values():
    losses = np.array([*range(1, 9), 50, 60], np.float32)
    assert upper_threshold(losses) == pytest.approx(16.996, abs=1e-3)
    exact = upper_threshold(losses, "density")
    assert exact == pytest.approx(10.085, abs=1e-3)
    spread = np.sqrt(np.arange(1, 6).var() + 1e-6)
    density = np.exp(-(((exact - 3) / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
    assert density == pytest.approx(1e-6)


def test_the_losses_equal_their_formulas(fixture):
    model, variables = fixture.model, fixture.variables
    images = as_float(jnp.asarray(fixture.samples.images[:20]))
    labels = (jnp.asarray(fixture.samples.labels[:20]) + 1) % 4  # wrong ones, with large losses
    outputs = model.apply(variables, images, train=True)
    logits = np.asarray(outputs.logits, np.float64)
    wanted = (((logits - logits.mean(1, keepdims=True)) ** 2).sum(1) / 3).mean()
    found, (stats, _) = variance_loss(model)(*variables, images, KEY, None)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    chex.assert_trees_all_equal(stats, outputs.batch_stats)
    batch = Suspects(images, labels, jnp.int32(3))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found, (_, reported) = ascent_loss(model)(*variables, batch, KEY, None)
    np.testing.assert_allclose(found, np.log(odds[np.arange(20), labels]).mean(), rtol=1e-5)
    assert int(reported["suspects"]) == 3


def slopes_by_hand(params, h, wanted):
    """Return the gradient of the mean squared error of V(h), and V(h), in NumPy."""
    seen = [h]
    for i, layer in enumerate(params):
        z = seen[-1] @ layer["kernel"] + layer["bias"]
        seen.append(np.maximum(z, 0) if i < 2 else 1 / (1 + np.exp(-z)))
    value, slopes = seen[-1], [{}, {}, {}]
    back = 2 * (value - wanted) / len(h) * value * (1 - value)
    for i in (2, 1, 0):
        slopes[i] = {"kernel": seen[i].T @ back, "bias": back.sum(0)}
        back = back @ params[i]["kernel"].T * (seen[i] > 0)
    return slopes, value[:, 0]


def test_the_small_network_makes_pairs_of_steps_with_an_own_adam_each(rng):
    config = ASSETConfig(rate=0.01, inner_steps=3, hidden=4)
    samples, base = rng.normal(size=(9, 5)), rng.normal(size=(6, 5))
    first = init_valuation(KEY, 5, 4)
    assert [layer["kernel"].shape for layer in first] == [(5, 4), (4, 4), (4, 1)]
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), first)
    zeros = jax.tree.map(np.zeros_like, params)
    moments = [(zeros, zeros), (zeros, zeros)]
    for step in range(1, 4):
        for i, (h, wanted) in enumerate(((samples, 1.0), (base, 0.0))):
            slopes, _ = slopes_by_hand(params, h, wanted)
            mean, square = moments[i]
            mean = jax.tree.map(lambda m, s: 0.9 * m + 0.1 * s, mean, slopes)
            square = jax.tree.map(lambda v, s: 0.999 * v + 0.001 * s**2, square, slopes)
            moments[i] = mean, square
            params = jax.tree.map(
                lambda p, m, v, step=step: (
                    p - 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
                ),
                params,
                mean,
                square,
            )
    found = learned_values(KEY, jnp.asarray(samples), jnp.asarray(base), config)
    _, wanted = slopes_by_hand(params, samples, 1.0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert float(jnp.abs(found - valuation(first, jnp.asarray(samples))).max()) > 1e-3


def test_suspects_are_the_outliers_and_fill_the_batch(fixture):
    model, variables, samples = fixture.model, fixture.variables, fixture.samples
    config = ASSETConfig(inner_steps=30, rate=1e-3, outlier=0.9)
    own, base = jnp.arange(60), as_float(jnp.asarray(fixture.reserved.images[:50]))
    batches = suspect_batches(model, config, lambda key, step: own, lambda *given: base)
    data = TrainData(samples, jnp.zeros(len(samples.labels), bool), {}, variables)
    found = batches(KEY, jnp.int32(4), data)
    images = as_float(jnp.asarray(samples.images[:60]))

    def features(images):
        return model.apply(variables, images, train=True).features["penultimate"]

    key = jax.random.fold_in(stream(KEY, "valuation"), 4)
    values = learned_values(key, features(images), features(base), config)
    chosen = np.flatnonzero(adjusted_outlyingness(values) > 0.9)
    assert 1 < len(chosen) < 30
    assert int(found.count) == len(chosen)
    rows = np.resize(chosen, 60)
    np.testing.assert_array_equal(found.images, images[rows])
    np.testing.assert_array_equal(found.labels, samples.labels[rows])


def test_steps_without_suspects_train_on_the_base_images_alone(fixture):
    given = (KEY, fixture.model, fixture.variables, fixture.samples, fixture.reserved)
    few = ASSETConfig(batch_size=200, inner_steps=1, outlier=1e9)
    state, records = fit(asset_loop(*given, few), Hooks(log_every=1))
    assert [record["suspects"] for record in records] == [0, 0]
    first, second = (part[0] for part in state.opt_state)
    assert (int(first.count), int(second.count)) == (2, 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(second.mu))


def test_training_continued_from_a_step_is_exact(fixture):
    given = (KEY, fixture.model, fixture.variables, fixture.samples, fixture.reserved)
    loop = asset_loop(*given, ASSETConfig(batch_size=100, inner_steps=2, outlier=0.0))
    assert loop.steps == 4
    whole, records = fit(loop)
    assert records[-1]["suspects"] > 50
    assert [int(part[0].count) for part in whole.opt_state] == [4, 4]
    half, _ = fit(loop._replace(steps=2))
    chex.assert_trees_all_equal(fit(loop._replace(state=half))[0].variables, whole.variables)


def test_poisoned_samples_of_the_fixture_have_high_losses(fixture):
    """The fixture has 400 samples, so the training takes more rounds and larger steps."""
    config = ASSETConfig(rounds=4, batch_size=100, rate=2e-3, inner_steps=20, outlier=1.5)
    detector = config.build(fixture.dataset.info)
    found = testing.check_sample_detector(detector, fixture, auroc=0.9)
    np.testing.assert_array_equal(found.flagged, found.scores > upper_threshold(found.scores))
    assert found.flagged[fixture.poisoned].mean() > 0.7
    assert found.flagged[~fixture.poisoned].mean() < 0.25


def test_scores_are_losses_of_the_trained_network(fixture):
    config = asset(batch_size=200, inner_steps=1, threshold="density")
    detector = config.build(fixture.dataset.info)
    given = (KEY, fixture.model, fixture.variables, fixture.samples, fixture.reserved)
    states = []
    hooks = Hooks(save=lambda state, records: states.append(state), save_last=True)
    found = detector.score(*given, hooks._replace(part=lambda name, every: hooks))
    variables = Variables(*jax.tree.map(jnp.copy, states[-1].variables))
    images = as_float(jnp.asarray(fixture.samples.images))
    logits = np.asarray(fixture.model.apply(variables, images, train=False).logits, np.float64)
    own = logits[np.arange(len(logits)), np.asarray(fixture.samples.labels)]
    np.testing.assert_allclose(found.scores, np.log(np.exp(logits).sum(1)) - own, atol=1e-4)
    least = upper_threshold(found.scores, "density")
    np.testing.assert_array_equal(found.flagged, found.scores > least)


def test_models_and_images_that_do_not_suffice_are_refused(fixture):
    check = asset().build(fixture.dataset.info).check
    model, shapes = fixture.model, jax.eval_shape(fixture.model.init, KEY)
    check(model, shapes, 2, 2)
    for samples, reserved, words in ((1, 9, "samples: 1 images"), (9, 1, "reserved: 1 images")):
        with pytest.raises(ConfigError, match=f"{words} are too few for a batch"):
            check(model, shapes, samples, reserved)

    def blind(*given, **options):
        return model.apply(*given, **options)._replace(features={})

    with pytest.raises(ConfigError, match="have no 'penultimate'; they are none"):
        check(model._replace(apply=blind), shapes, 100, 50)
