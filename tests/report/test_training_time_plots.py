"""Tests of the figures of training-time defences."""

import numpy as np

from d3jax.metrics.sample_scores import precision_recall
from d3jax.report.plots.training_time import kept_clean


def test_kept_clean_gives_precision_and_recall_of_clean_images():
    flags, scores = np.array([False, True, False, False]), np.array([0.1, 0.2, 0.3, 0.4])
    precision, recall = kept_clean(precision_recall(scores, flags)[0], flags)
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3, 3 / 4])
    np.testing.assert_allclose(recall, [1 / 3, 1 / 3, 2 / 3, 1])
