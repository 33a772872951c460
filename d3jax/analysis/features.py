"""Penultimate features of clean and triggered images: measures of separation, and 2-D projections.

A backdoored network puts triggered images into a cluster of their own or into that of the target
class. A repaired network puts each near its clean twin. Yue et al. (arXiv 2205.04411) draw this as
t-SNE, and the numbers here are d3jax's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Integer, UInt8

from ..core.errors import ConfigError, names
from ..core.images import as_float
from ..core.types import Array, Model, Variables
from ..data.batched import batched_map
from ..runtime.compilation import fast


def penultimate(
    model: Model,
    variables: Variables,
    images: UInt8[Array, "N H W C"],
    batch_size: int = 500,
) -> Float32[np.ndarray, "N D"]:
    """Return a model's penultimate features [N, D] of uint8 images [N, H, W, C], in eval mode.

    They are the input of the classifier. Raises `ConfigError` where the model names no such
    features.
    """
    compute = functools.partial(_features, model, variables)
    return batched_map(compute, images, batch_size=batch_size).astype(np.float32)


@functools.partial(fast, static=1)
def _features(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    features = model.apply(variables, as_float(images), train=False).features
    if "penultimate" not in features:
        raise ConfigError(
            "needs the input of the classifier, and the model's features have no 'penultimate'; "
            f"they are {names(features) or 'none'}"
        )
    return features["penultimate"].reshape(len(images), -1)


def separation(
    clean: Float[np.ndarray, "N D"],
    triggered: Float[np.ndarray, "M D"],
    labels: Integer[np.ndarray, " N"],
    twins: Integer[np.ndarray, " M"],
) -> dict[str, float]:
    """Return a dict of two measures of how far features of triggered images are from clean ones.

    Args:
        clean: features [N, D] of clean images of the classes `labels` [N].
        triggered: features [M, D] of triggered images. Their clean twins are the rows `twins` [M]
            of `clean`.

    Returns:
        `twin_distance`: the mean distance of a triggered image to its clean twin, divided by the
        mean distance of two clean images. It is 0 on the twins, and about 1 anywhere.

        `silhouette` in [-1, 1]: the mean silhouette of the triggered images as one cluster next to
        the clean classes. It is near 1 for a cluster of its own, and below 0 within the classes.

        Both are NaN where there are too few images.
    """
    from sklearn.metrics import silhouette_samples
    from sklearn.metrics.pairwise import euclidean_distances

    if len(triggered) < 2 or len(clean) < 2:
        return {"twin_distance": float("nan"), "silhouette": float("nan")}
    apart = euclidean_distances(clean).sum() / (len(clean) * (len(clean) - 1))
    gaps = np.linalg.norm(triggered - clean[twins], axis=1)
    groups = np.concatenate([labels, np.full(len(triggered), labels.max() + 1)])
    silhouettes = np.asarray(silhouette_samples(np.concatenate([clean, triggered]), groups))[
        len(clean) :
    ]
    return {
        "twin_distance": float(gaps.mean() / apart) if apart else float("nan"),
        "silhouette": float(silhouettes.mean()),
    }


def project(
    features: Float[np.ndarray, "N D"], method: str, seed: int = 0
) -> Float[np.ndarray, "N 2"]:
    """Project features [N, D] to points [N, 2] by `method` "pca" or "tsne".

    t-SNE is scikit-learn's, started from PCA. All points are 0 for fewer than three images, and for
    features that are not finite. They are also 0 where all features are alike, because t-SNE would
    crash the process.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if (
        len(features) < 3
        or not np.isfinite(features).all()
        or np.ptp(features, axis=0).max() < 1e-6 * np.abs(features).max() + 1e-12
    ):
        return np.zeros((len(features), 2))
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(np.asarray(features, np.float64))
    perplexity = min(30.0, (len(features) - 1) / 3)
    # Several threads that share their cores with a training run take four times as long.
    with threadpool_limits(1):
        embedding = TSNE(2, init="pca", perplexity=perplexity, max_iter=500, random_state=seed)
        return embedding.fit_transform(np.asarray(features, np.float32))


def compare_features(
    model: Model,
    variables: Variables,
    images: jax.Array,
    labels: np.ndarray,
    stamp: Callable[[Array], Array],
    relabel: Callable[[Array], Array],
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return 2-D projections and measures of separation of clean and triggered images' features.

    `images` are uint8 [N, H, W, C]. They are triggered where the attacker wants another class
    (`relabel`), which gives M of them. The projections by `pca` and `tsne` are points [N + M, 2],
    clean images first. The `labels` [N] are returned with them.
    """
    twins = np.flatnonzero(np.asarray(relabel(jnp.asarray(labels)) != labels))
    clean = penultimate(model, variables, images)
    triggered = clean[:0]
    if len(twins):
        triggered = penultimate(model, variables, stamp(images[twins]))
    both = np.concatenate([clean, triggered])
    points = {method: project(both, method) for method in ("pca", "tsne")}
    return points | {"labels": labels}, separation(clean, triggered, labels, twins)
