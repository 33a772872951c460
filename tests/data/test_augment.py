"""Tests of augmentation: crops, flips, strong augmentation and cutout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from d3jax.core.types import DataInfo
from d3jax.data.augment import cutout, make_augment, random_crop, random_flip
from d3jax.data.randaugment import OPERATIONS, strong_augment


def test_crop_shifts_images_independently_and_fills_with_black():
    images = jnp.ones((64, 8, 8, 1)).at[:, 3, 3].set(0.5)
    out = np.asarray(random_crop(jax.random.key(0), images, 2))
    marks = np.argwhere(out[..., 0] == 0.5)
    assert len(marks) == 64 and len({tuple(mark[1:]) for mark in marks}) > 15
    assert marks[:, 1:].min() == 1 and marks[:, 1:].max() == 5
    for image, (_, row, column) in zip(out[..., 0], marks, strict=True):
        assert (image == 0).sum() == 64 - (8 - abs(row - 3)) * (8 - abs(column - 3))


def test_flip_mirrors_about_half_of_the_images():
    images = jnp.broadcast_to(jnp.arange(4.0)[:, None], (400, 3, 4, 1))
    out = random_flip(jax.random.key(0), images)[:, 0, :, 0]
    flipped = (out == jnp.arange(4.0)[::-1]).all(1)
    assert 150 < int(flipped.sum()) < 250 and bool(
        (flipped | (out == jnp.arange(4.0)).all(1)).all()
    )


def test_augment_crops_only_where_the_data_set_allows_it():
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    plain = DataInfo("x", (8, 8, 1), ("a", "b"), (0.5,), (0.5,))
    moved = DataInfo("x", (8, 8, 1), ("a", "b"), (0.5,), (0.5,), crop=2)
    assert jnp.array_equal(make_augment(plain)(jax.random.key(0), images), images)
    assert jnp.array_equal(make_augment(moved, "none")(jax.random.key(0), images), images)
    assert not jnp.array_equal(make_augment(moved)(jax.random.key(0), images), images)


KEY = jax.random.key(11)


def test_strong_augmentation_keeps_the_range_and_differs_by_image(rng):
    images = jnp.asarray(rng.random((32, 10, 12, 3)), jnp.float32)
    found = jax.jit(strong_augment)(KEY, images)
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
    changed = np.abs(np.asarray(found - images)).mean((1, 2, 3))
    assert (changed > 0.01).mean() > 0.8 and len(set(changed.tolist())) > 25
    images = images.at[0, 0].set(1.0)
    for operation, _ in OPERATIONS:
        np.testing.assert_allclose(operation(KEY, images, jnp.float32(0.0)), images, atol=1 / 255)


def test_cutout_blackens_one_square_of_each_image(dataset):
    images = jnp.ones((200, 9, 7, 2))
    black = np.asarray(cutout(KEY, images, 3) == 0)
    assert (black[..., 0] == black[..., 1]).all()
    count = black[..., 0].sum((1, 2))
    assert (
        count.max() == 9 and count.min() == 4 and set(count) == {4, 6, 9}
    )  # inside, at an edge, in a corner
    found = make_augment(dataclasses.replace(dataset.info, crop=0, flip=False), "cutout")(
        KEY, jnp.ones((200, 9, 7, 2))
    )
    # ABL's square has two pixels a side.
    assert set(np.asarray(found == 0)[..., 0].sum((1, 2))) == {1, 2, 4}
    assert set(np.asarray(cutout(KEY, images[:, :5, :5], 2) == 0)[..., 0].sum((1, 2))) == {1, 2, 4}
