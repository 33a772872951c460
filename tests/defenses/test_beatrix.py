"""Tests of Beatrix: Gram features, bounds and distances by formula, and the fixture's samples."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from d3jax import testing
from d3jax.core.types import Model
from d3jax.defenses import beatrix
from d3jax.defenses.sample_detection.beatrix import (
    Bounds,
    Gram,
    bounds,
    deviation,
    grams,
    infected,
    kernel_distance,
)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("order", [1, 2, 3, 8])
@pytest.mark.parametrize("powers", ["activation", "none"])
def test_gram_features_are_roots_of_products_of_powers(order, powers):
    activation = drawn(2, 3, 3, 4)
    found = grams(jnp.asarray(activation, jnp.float32), order, powers)
    for image, row in zip(activation, found, strict=True):
        flat = image.reshape(9, 4) ** (order if powers == "activation" else 1)
        product = flat.T @ flat
        wanted = [
            np.sign(product[i, j]) * abs(product[i, j]) ** (1 / order)
            for i in range(4)
            for j in range(i + 1, 4)
        ]
        np.testing.assert_allclose(row, wanted, rtol=2e-4, atol=1e-5)


def test_bounds_are_the_median_and_ten_mads():
    features = np.array([1.0, 2, 3, 4, 100])[:, None, None]
    found = bounds(features, 10.0)
    assert (found.low.item(), found.high.item()) == (3 - 10, 3 + 10)


def test_a_deviation_is_the_excess_as_a_share_of_the_bound():
    features = np.array([[0.0, 5, 9], [4, 4, 4]])
    low, high = np.array([[2.0, 2, 2]] * 2), np.array([[6.0, 6, 6]] * 2)
    found = deviation(jnp.asarray(features), jnp.asarray(low), jnp.asarray(high))
    np.testing.assert_allclose(found, [2 / 2 + 3 / 6, 0])


def test_the_kernel_distance_is_that_of_two_gaussians():
    first, second = drawn(20, 3), drawn(30, 3, seed=1) + 1
    both = np.concatenate([first, second])
    square = ((both[:, None] - both[None]) ** 2).sum(-1)
    width = np.median(square[~np.eye(50, dtype=bool)])

    def kernel(a, b):
        return rbf_kernel(a, b, 1 / width) + rbf_kernel(a, b, 0.5 / width)

    wanted = kernel(first, first).mean() + kernel(second, second).mean()
    wanted -= 2 * kernel(first, second).mean()
    assert kernel_distance(first, second) == pytest.approx(wanted)
    assert kernel_distance(first, first) == pytest.approx(0, abs=1e-12)


def test_the_infected_class_is_the_one_with_two_groups():
    features, classes = drawn(1200, 4), np.arange(1200) % 6
    suspicious = np.arange(1200) % 5 == 0
    features[(classes == 3) & suspicious] += 4
    generator = np.random.default_rng(0)
    assert infected(features, classes, suspicious, np.exp(2), generator).tolist() == [3]
    assert infected(features, classes, suspicious & False, np.exp(2), generator).tolist() == []


def test_deviations_count_half_of_all_entries(fixture):
    """Bounds of 0 make every feature an excess; the program agrees with NumPy."""
    config = beatrix(orders=(1, 3))
    gram = Gram(config, fixture.dataset.info, fixture.model, fixture.variables)
    images, classes = np.asarray(fixture.samples.images)[:7], np.arange(7) % 2
    found = Bounds(np.full((2, 2, gram.entries), -1.0), np.ones((2, 2, gram.entries)))
    features = gram.features(images)
    over = np.maximum(np.abs(features) - 1, 0).sum((1, 2))
    size = fixture.model.activations()[gram.layer].shape[-1] ** 2
    np.testing.assert_allclose(
        gram.deviations(images, classes, found), over / (2 * size / 2), rtol=1e-5
    )


def test_poisoned_samples_deviate_and_bad_input_is_refused(fixture):
    detector = beatrix().build(fixture.dataset.info)
    found = testing.check_sample_detector(detector, fixture, auroc=0.8)
    assert found.flagged[fixture.poisoned].mean() > 2 * found.flagged[~fixture.poisoned].mean()
    testing.check_refuses(
        detector.check, fixture.model, None, 100, 19, words="19 reserved images, want at least 5"
    )
    testing.check_refuses(
        beatrix(layer="ou1").build(fixture.dataset.info).check, fixture.model, None, 100, 50,
        words="layer: 'ou1' is no activation of more than one place of this model",
    )  # fmt: skip
    bare = Model(fixture.model.init, fixture.model.apply)
    testing.check_refuses(
        detector.check, bare, None, 100, 50, words="this model names no activations"
    )
