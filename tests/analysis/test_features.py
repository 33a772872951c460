"""Tests of the separation and projection of features, on hand-made clusters and a network."""

import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.analysis import penultimate, project, separation
from d3jax.core.images import as_float

RNG = np.random.default_rng(0)
CLASSES = np.repeat(np.arange(3), 20)
CENTRES = 10 * np.eye(3, 8)[CLASSES]
CLEAN = CENTRES + RNG.normal(0, 0.5, CENTRES.shape)
TWINS = np.arange(20, 60)


def test_separation_is_zero_where_triggered_images_equal_their_clean_twins():
    found = separation(CLEAN, CLEAN[TWINS], CLASSES, TWINS)
    assert found["twin_distance"] == 0 and found["silhouette"] < 0


def test_separation_is_large_where_triggered_images_form_a_cluster(rng):
    far = 10 * np.eye(8)[7] + rng.normal(0, 0.5, (40, 8))
    found = separation(CLEAN, far, CLASSES, TWINS)
    apart = [np.linalg.norm(a - b) for i, a in enumerate(CLEAN) for b in CLEAN[:i]]
    gaps = np.linalg.norm(far - CLEAN[TWINS], axis=1)
    assert found["twin_distance"] == pytest.approx(gaps.mean() / np.mean(apart), rel=1e-6)
    assert found["silhouette"] > 0.7


def test_separation_is_nan_without_triggered_images():
    found = separation(CLEAN, CLEAN[:0], CLASSES, TWINS[:0])
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projections_keep_clusters_apart_and_are_deterministic(method):
    points = project(CLEAN, method)
    assert points.shape == (60, 2) and np.isfinite(points).all()
    np.testing.assert_array_equal(points, project(CLEAN, method))
    middles = np.stack([points[CLASSES == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(points[:, None] - middles[None], axis=2).argmin(1)
    assert (nearest == CLASSES).all()


@pytest.mark.parametrize(
    "features", [np.zeros((60, 8)), CLEAN[:1], np.full((60, 8), np.nan), np.full((60, 8), 1e30)]
)
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_degenerate_features_are_projected_to_zero(features, method):
    """A network with only dead units has such features.

    scikit-learn's t-SNE would crash the process on them.
    """
    assert not project(features, method).any() and len(project(features, method)) == len(features)


def test_penultimate_features_give_the_logits_through_the_head(dataset, model, victim):
    found = penultimate(model, victim.variables, dataset.test.images, batch_size=50)
    head = victim.variables.params["head"]
    logits = model.apply(
        victim.variables, as_float(jnp.asarray(dataset.test.images)), train=False
    ).logits
    np.testing.assert_allclose(found @ head["kernel"] + head["bias"], logits, rtol=1e-3, atol=1e-3)
