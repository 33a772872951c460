"""Tests of the changes of weight tensors between models."""

import numpy as np
import pytest

from d3jax.analysis.weight_changes import changes


def test_changes_have_a_norm_and_a_histogram_for_each_tensor():
    first = {"a": np.zeros((2, 2)), "b": {"c": np.full(4, 2.0)}}
    second = {"a": np.zeros((2, 2)), "b": {"c": np.array([2.0, 2.0, 2.0, 5.0])}}
    third = {"a": np.full((2, 2), 9.0), "b": {"c": np.array([2.0, 2.0, 2.0, 2.5])}}
    found, other = changes(first, [second, third])
    assert (
        found["b/c"]["norm"] == 3
        and found["b/c"]["relative"] == pytest.approx(3 / 4)
        and found["a"]["norm"] == 0
    )
    assert (
        found["a"]["counts"].sum() == 4
        and found["a"]["counts"][30] == 4
        and found["b/c"]["counts"][-1] == 1
    )
    # A tensor has its own bins, which all models share.
    assert other["b/c"]["norm"] == 0.5 and other["b/c"]["counts"][35] == 1
    for name in found:
        np.testing.assert_array_equal(found[name]["edges"], other[name]["edges"])
    assert found["a"]["edges"][-1] == 9 and found["b/c"]["edges"][-1] == pytest.approx(3, abs=0.01)
