"""Tests of the separation of D-BR and D-ST: intra-class loss, transformation, score and rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import Split
from d3jax.data.drift import keys_of
from d3jax.defenses.training_time import consistency
from d3jax.defenses.training_time.consistency import (
    Separation,
    SeparationConfig,
    check_separation,
    distances_of,
    first_stage_of,
    found_of,
    found_shapes,
    intra_class,
    separate,
    separated,
    short_separation,
    transformed,
)
from d3jax.training.loop import Hooks, fit

KEY = jax.random.key(11)
MOVED = jax.jit(transformed)


def recipe(steps, lr=0.05):
    """Return a training recipe of a few steps with a constant learning rate."""
    optimizer = OptimConfig(lr=lr, schedule="constant")
    return TrainConfig(steps=steps, batch_size=64, augment="none", optimizer=optimizer)


def test_the_settings_are_those_of_the_authors():
    config = SeparationConfig()
    assert (config.first.epochs, config.intra.epochs) == (2, 10)
    assert (config.degrees, config.shift, config.clean, config.poisoned) == (180, 0.2, 0.2, 0.05)
    for one in (config.first, config.intra):
        assert (one.batch_size, one.augment) == (128, "none")
        assert one.optimizer == OptimConfig(
            lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="constant"
        )
    assert short_separation().first == config.first and short_separation().intra.epochs == 3


def intra_by_hand(features, labels):
    """Return the intra-class loss pair by pair, in NumPy."""
    present = sorted(set(labels.tolist()))
    centres = [features[labels == label].mean(0) for label in present]
    total = 0.0
    for i, one in enumerate(centres):
        for j, other in enumerate(centres):
            if i != j:
                total += one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    return total / len(present) ** 2


def test_the_intra_class_loss_equals_the_one_computed_pair_by_pair(rng):
    features, labels = rng.normal(size=(20, 6)) + 0.5, np.array([0, 1, 3, 3, 5] * 4)
    found = intra_class(jnp.asarray(features, jnp.float32), jnp.asarray(labels), 7)
    assert float(found) == pytest.approx(intra_by_hand(features, labels), rel=1e-5)
    # Classes 2, 4 and 6 are absent, and do not change the mean.
    fewer = np.searchsorted([0, 1, 3, 5], labels)
    again = intra_class(jnp.asarray(features, jnp.float32), jnp.asarray(fewer), 4)
    assert float(again) == pytest.approx(float(found), rel=1e-6)


def test_the_intra_class_loss_has_its_check_values():
    labels = jnp.array([0, 0, 1])
    equal = jnp.array([[1.0, 0], [3, 0], [7, 0]])
    assert float(intra_class(equal, labels, 2)) == pytest.approx(0.5)  # 2 of 4 pairs, cosine 1
    apart = jnp.array([[1.0, 0], [3, 0], [0, 7]])
    assert float(intra_class(apart, labels, 2)) == 0
    one = jnp.array([[1.0, 0], [3, 0], [0, 7]])
    assert float(intra_class(one, jnp.zeros(3, int), 2)) == 0
    slopes = jax.grad(intra_class)(jnp.zeros((3, 2)), labels, 2)
    assert bool(jnp.isfinite(slopes).all())


def test_step_2_pushes_the_centres_of_the_classes_apart(fixture):
    config = SeparationConfig(first=recipe(2), intra=recipe(30, 0.01))
    labels, losses = np.asarray(fixture.samples.labels), []
    images = as_float(jnp.asarray(fixture.samples.images))
    loss = consistency.intra_loss(fixture.model, 4)
    loop = consistency.training_loop(
        KEY, fixture.variables, fixture.samples, config.intra, fixture.dataset.info, loss
    )
    after = fit(loop)[0].variables
    for variables in (fixture.variables, after):
        features = fixture.model.apply(variables, images, train=False).features["penultimate"]
        losses.append(intra_by_hand(np.asarray(features, np.float64), labels))
    assert losses[1] < losses[0] - 0.05, losses


def transformed_by_hand(key, image, degrees, shift):
    """Return an image turned and then shifted by the draws of its key, pixel by pixel."""
    key_angle, key_shift = jax.random.split(key)
    height, width = image.shape[:2]
    angle = np.deg2rad(float(jax.random.uniform(key_angle, minval=-degrees, maxval=degrees)))
    most = shift * np.array([height, width])
    drawn = np.asarray(jax.random.uniform(key_shift, (2,), minval=-1.0, maxval=1.0)) * most
    down, right = np.rint(drawn).astype(int)
    turned, out = np.zeros_like(image), np.zeros_like(image)
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    for y in range(height):
        for x in range(width):
            a, b = y - centre_y, x - centre_x
            row = int(np.rint(np.sin(angle) * b + np.cos(angle) * a + centre_y))
            column = int(np.rint(np.cos(angle) * b - np.sin(angle) * a + centre_x))
            if 0 <= row < height and 0 <= column < width:
                turned[y, x] = image[row, column]
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[y, x] = turned[y - down, x - right]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transformation_equals_the_one_computed_pixel_by_pixel(rng, channels):
    images = rng.random((5, 9, 12, channels), np.float32)
    keys = jax.random.split(KEY, 5)
    for degrees, shift in ((180.0, 0.2), (30.0, 0.0), (0.0, 0.4)):
        found = np.asarray(MOVED(keys, images, degrees, shift))
        wanted = [
            transformed_by_hand(key, image, degrees, shift)
            for key, image in zip(keys, images, strict=True)
        ]
        different = (found != np.stack(wanted)).any(-1)
        assert different.mean() < 0.01, (degrees, shift)  # rounding of places between two pixels
    assert np.array_equal(MOVED(keys, images, 0.0, 0.0), images)


def test_the_transformation_of_an_image_does_not_depend_on_its_batch(rng):
    images = rng.random((6, 8, 8, 1), np.float32)
    keys = keys_of(KEY, jnp.arange(6))
    whole = MOVED(keys, images, 180.0, 0.2)
    assert np.array_equal(whole[2:4], MOVED(keys[2:4], images[2:4], 180.0, 0.2))
    assert not np.array_equal(whole, MOVED(keys_of(KEY, jnp.arange(1, 7)), images, 180.0, 0.2))


def test_distances_equal_their_formula_and_read_no_label(fixture, monkeypatch):
    config, size = SeparationConfig(), 70
    data = Split(fixture.samples.images[:size], fixture.samples.labels[:size])
    found = distances_of(KEY, fixture.model, fixture.variables, data, config)
    images = as_float(jnp.asarray(data.images))
    moved = MOVED(keys_of(KEY, jnp.arange(size)), images, 180.0, 0.2)
    before, after = (
        np.asarray(
            fixture.model.apply(fixture.variables, one, train=False).features["penultimate"],
            np.float64,
        )
        for one in (images, moved)
    )
    np.testing.assert_allclose(found, ((before - after) ** 2).mean(1), rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(consistency, "EVAL_BATCH", 30)
    other = Split(data.images, (np.asarray(data.labels) + 1) % 4)
    again = distances_of(KEY, fixture.model, fixture.variables, other, config)
    np.testing.assert_allclose(found, again, rtol=1e-4, atol=1e-6)


def test_the_lowest_distances_are_trusted_and_the_highest_are_suspects():
    distances = np.array([5.0, 0, 9, 1, 1, 7, 8, 1, 3, 2])
    ties = np.array([0.0, 0, 0, 0.5, 0.1, 0, 0, 0.9, 0, 0])
    config = SeparationConfig(clean=0.3, poisoned=0.2)
    clean, poisoned = separated(distances, ties, config)
    assert clean.tolist() == [1, 3, 4] and poisoned.tolist() == [2, 6]
    clean, poisoned = separated(np.zeros(10), ties, config)
    assert clean.tolist() == [0, 1, 2] and poisoned.tolist() == [3, 7]
    found = found_of(Separation(distances.astype(np.float32), clean, poisoned, []))
    assert found["consistency"].tolist() == (-distances).tolist()
    assert np.flatnonzero(found["suspects"]).tolist() == [3, 7]
    assert np.flatnonzero(found["labelled"]).tolist() == [0, 1, 2]
    shapes = {name: (one.shape, one.dtype) for name, one in found_shapes(10).items()}
    assert shapes == {name: (one.shape, one.dtype) for name, one in found.items()}


def test_the_separation_follows_from_the_key_and_has_exact_sizes(fixture):
    config = SeparationConfig(first=recipe(2), intra=recipe(3, 0.01))
    said = []
    given = (fixture.model, fixture.samples, fixture.variables, config, fixture.dataset.info)
    first, again, other = (
        separate(key, *given, Hooks(say=said.append)) for key in (KEY, KEY, jax.random.key(12))
    )
    assert (len(first.clean), len(first.poisoned)) == (80, 20)
    assert not set(first.clean) & set(first.poisoned)
    assert first.distances[first.clean].max() <= first.distances[first.poisoned].min()
    np.testing.assert_array_equal(first.distances, again.distances)
    assert not np.array_equal(first.distances, other.distances)
    told = [line for line in said if line.startswith("consistency")]
    assert len(told) == 3 and "80 images" in told[0] and "20 with" in told[0]
    assert first.lines[-1]["step"] == 3


def test_the_first_stage_is_determined_by_its_settings(fixture):
    info = fixture.dataset.info
    config = SeparationConfig(first=recipe(2))
    other = dataclasses.replace(config, intra=recipe(9), clean=0.5, degrees=3.0)
    stages = [first_stage_of(one, info) for one in (config, other)]
    assert stages[0]["settings"] == stages[1]["settings"]
    ends = [fit(one["begin"](KEY, fixture.model, fixture.samples))[0].variables for one in stages]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    longer = first_stage_of(dataclasses.replace(config, first=recipe(3)), info)
    assert longer["settings"] != stages[0]["settings"] and stages[0]["epoch"](400) == 6


def test_settings_that_separate_nothing_are_refused(fixture):
    config = SeparationConfig()
    with pytest.raises(ConfigError, match="clean: 0.97 and poisoned: 0.05 of the images are more"):
        SeparationConfig(clean=0.97)
    refuses = testing.check_refuses
    words = "separation.first.batch_size: 128 is more than the 100 images"
    refuses(check_separation, config, fixture.model, 100, words=words)
    few = SeparationConfig(poisoned=0.001)
    words = "separation.poisoned: 0.001 of the 400 images is less than one"
    refuses(check_separation, few, fixture.model, 400, words=words)
    nameless = fixture.model._replace(activations=None)
    refuses(check_separation, config, nameless, 400, words="features have no 'penultimate'")
