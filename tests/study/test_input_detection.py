"""Tests of the input-detection node: its table and pictures, and the model that rejects inputs."""

import dataclasses

import numpy as np
import pytest

from d3jax.core.types import InputDetector
from d3jax.results.artifacts import RunFolder
from d3jax.results.tables import read_csv
from d3jax.study.registries import DETECTIONS, REGISTRIES

from ..helpers import studies


@dataclasses.dataclass(frozen=True)
class _Corner:
    """Settings of a detector that knows the trigger: the last pixel's brightness."""

    def build(self, info):
        """Build the detector."""
        return _make_corner(self, info)


def _make_corner(config, info):
    def score(model, variables, state, images):
        return images[:, -1, -1].mean(-1).astype(np.float32)

    return InputDetector(lambda *given: {}, score, lambda state: 254.0)


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Run a study with the detector `corner`; return its folder, results and row of inputs.csv."""
    monkeypatch.setitem(DETECTIONS, "corner", (_Corner, _make_corner))
    monkeypatch.setitem(REGISTRIES["detections"], "corner", _Corner)
    config = studies.read(
        studies.TINY, ("detections", "[corner]"), ("defenses", "[]"), ("train.steps", "120")
    )
    (result,) = studies.run(config, tmp_path / "run")
    (row,) = read_csv(tmp_path / "run" / "inputs.csv")
    return tmp_path / "run", result, row


def test_a_perfect_detector_takes_the_success_and_leaves_the_accuracy(found):
    folder, result, row = found
    assert row["auroc"] == 1 and row["recall"] == 1 and row["fpr"] == 0
    assert result["asr"] > 0.5 and row["asr_rejecting"] == 0
    assert row["acc_rejecting"] == pytest.approx(result["acc"])
    page = (folder / "report.html").read_text()
    assert "ROC curves of test inputs" in page and "Most and least suspicious" in page


def test_the_pictures_are_of_the_highest_and_lowest_scores(found):
    (node,) = RunFolder(found[0]).finished("input_detection")
    arrays = node.arrays
    order = np.argsort(-arrays["scores"], kind="stable")
    assert len(arrays["most"]) == len(arrays["least"]) == 10
    assert (arrays["most"][:, -1, -1] == 255).all()
    np.testing.assert_allclose(
        arrays["least"][:, -1, -1].mean(-1), arrays["scores"][order[::-1][:10]]
    )
