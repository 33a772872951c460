"""Tests of MM-BD: margins with known values, and its outlier test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo, Model, Outputs, Variables
from d3jax.defenses import mmbd
from d3jax.defenses.model_detection.mmbd import Margins, judge_margins, margins_of


def test_margins_are_the_logit_of_the_class_minus_the_largest_other():
    logits = jnp.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    np.testing.assert_allclose(margins_of(logits, jnp.array([1, 0])), [2.0, -3.0])


def test_an_outlying_margin_is_flagged_and_equal_ones_are_not():
    rng = np.random.default_rng(1)
    margins = rng.gamma(50, 0.1, 10).astype(np.float32)
    quiet = judge_margins(Margins(margins, np.zeros(10)), 0.05)
    assert quiet.target == -1 and 0 <= quiet.facts["p_value"] <= 1
    loud = judge_margins(Margins(np.where(np.arange(10) == 3, 30.0, margins), np.zeros(10)), 0.05)
    assert loud.target == 3 and loud.statistic > loud.threshold
    for odd in (np.ones(10), np.append(margins[:9], np.nan)):
        assert judge_margins(Margins(odd, np.zeros(10)), 0.05).facts["p_value"] == 1
    low = judge_margins(Margins(margins - margins.mean(), np.zeros(10)), 0.05)
    assert low.target == -1 and 0 < low.facts["p_value"] < 1  # negative margins are valid


def test_margins_of_a_linear_model_reach_the_corner_of_the_cube():
    """A linear margin is largest at a corner of [0, 1]², where its value is known."""
    info = DataInfo("four", (1, 1, 2), tuple("abcd"), (0.5,) * 2, (0.25,) * 2)
    weights = jnp.array([[5.0, 0.0], [0.0, 3.0], [-1.0, -1.0], [0.0, 0.0]])

    def apply(variables, images, *, train):
        return Outputs(images.reshape(len(images), 2) @ weights.T, {}, {})

    detector = mmbd(images=4, steps=400, lr=0.05, tolerance=0).build(info)
    model = Model(lambda key: Variables({}, {}), apply)
    found, records = detector.detect(jax.random.key(0), model, Variables({}, {}))
    # Class 0 at (1, 0): 5 − 0; class 1 at (0, 1): 3 − 0; 2 at (0, 0): 0; 3 at (0, 0): 0.
    np.testing.assert_allclose(found.margins, [5, 3, 0, 0], atol=1e-5)
    assert records[-1]["step"] == 400


def test_fewer_than_four_classes_are_refused():
    with pytest.raises(ConfigError, match="3 classes are too few, want 4"):
        mmbd().build(DataInfo("three", (4, 4, 1), tuple("abc"), (0.5,), (0.25,)))
