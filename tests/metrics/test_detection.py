"""Tests of the rates of detectors on hand-made scores."""

import numpy as np
import pytest

from d3jax.metrics.detection import detection_rates


def test_rates_match_counts_by_hand():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    positive = np.array([True, False, True, False, False])
    flagged = np.array([True, True, False, False, False])
    found = detection_rates(scores, flagged, positive)
    # Of the six pairs, five are in order: the second positive is below one negative.
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["tpr_1"] == found["tpr_5"] == 0.5
    assert (found["precision"], found["recall"]) == (0.5, 0.5)
    assert found["fpr"] == pytest.approx(1 / 3)
    assert (found["positive"], found["flagged"]) == (2, 2)


def test_tpr_5_allows_false_positives_that_tpr_1_does_not():
    positive = np.arange(200) < 100
    scores = np.where(positive, 1.0, 0.0)
    scores[100:104] = 2.0  # four of a hundred negatives are above all positives
    found = detection_rates(scores, scores > 0.5, positive)
    assert found["tpr_1"] == 0 and found["tpr_5"] == 1


@pytest.mark.parametrize("truth", [True, False])
def test_rates_are_none_without_positives_or_without_negatives(truth):
    found = detection_rates(np.arange(4.0), np.zeros(4, bool), np.full(4, truth))
    assert found["auroc"] is found["tpr_1"] is found["precision"] is None
    assert (found["recall"], found["fpr"]) == ((0, None) if truth else (None, 0))


def test_scores_that_are_not_finite_are_ranked():
    positive = np.array([True, False, False, True])
    scores = np.array([np.inf, -np.inf, np.nan, 1.0])
    assert detection_rates(scores, positive, positive)["auroc"] == 1
