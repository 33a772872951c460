"""Tests of models that are known by their answers."""

import jax
import numpy as np
import pytest

from d3jax.core.types import Variables
from d3jax.models import black_box

NOTHING = Variables({}, {})


def test_logits_are_the_answers_also_in_a_compiled_function():
    model = black_box(lambda images: images.reshape(len(images), -1)[:, :3] * 2, 3)
    images = np.random.default_rng(0).random((4, 2, 2, 1), np.float32)
    found = jax.jit(model.apply, static_argnames="train")(NOTHING, images, train=False).logits
    np.testing.assert_allclose(found, 2 * images.reshape(4, 4)[:, :3])


def test_labels_become_one_hot_logits():
    model = black_box(lambda images: np.arange(len(images)) % 3, 3)
    found = model.apply(NOTHING, np.zeros((4, 2, 2, 1), np.float32)).logits
    np.testing.assert_array_equal(found, np.eye(3)[[0, 1, 2, 0]])


def test_answers_of_another_shape_are_named():
    model = black_box(lambda images: np.zeros((len(images), 2)), 3)
    with pytest.raises(Exception, match=r"float64 \[4, 2\] for 4 images, want logits \[4, 3\]"):
        jax.block_until_ready(model.apply(NOTHING, np.zeros((4, 2, 2, 1), np.float32)).logits)
