"""Tests of the sample-detection node: which training images it scores."""

import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.results.artifacts import RunFolder
from d3jax.results.tables import read_csv
from d3jax.study.graph import make_nodes

from ..helpers import studies

GIVEN = (("detections", "[spectral]"), ("defenses", "[]"), ("train.steps", "30"))


def test_a_random_part_of_the_training_images_is_scored(tmp_path):
    config = studies.read(studies.TINY, *GIVEN, ("scored", "150"))
    studies.run(config, tmp_path / "run")
    (row,) = read_csv(tmp_path / "run" / "samples.csv")
    (node,) = RunFolder(tmp_path / "run").finished("sample_detection")
    assert len(node.arrays["scores"]) == 150
    assert row["positive"] == node.arrays["positive"].sum()
    assert 5 <= row["positive"] <= 25  # a tenth of them is expected
    assert node.arrays["most"].shape == (10, 12, 12, 3)


def test_the_part_differs_by_seed_and_changes_the_recipe(tmp_path):
    found = []
    for scored, seed in (("0", "[0]"), ("150", "[0]"), ("150", "[1]")):
        config = studies.read(studies.TINY, *GIVEN, ("scored", scored), ("seeds", seed))
        nodes = make_nodes(studies.opened(config, tmp_path / "run"))
        found.append(next(node for node in nodes if node.kind == "sample_detection"))
    whole, first, second = found
    np.testing.assert_array_equal(whole.scored_rows, np.arange(400))
    assert len(set(first.scored_rows)) == 150 and not np.array_equal(
        first.scored_rows, second.scored_rows
    )
    assert whole.folder != first.folder


def test_more_than_there_are_is_refused(tmp_path):
    config = studies.read(studies.TINY, *GIVEN, ("scored", "401"))
    with pytest.raises(ConfigError, match="scored: 401 is more than the 400 training images"):
        make_nodes(studies.opened(config, tmp_path / "run"))
