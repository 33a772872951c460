"""Penultimate features of clean and triggered images: where they lie, as numbers and as points in a plane.

A backdoored network gives triggered images a cluster of their own, or puts them into the target's; a repaired one puts each near
its clean twin (Yue et al., arXiv 2205.04411, draw this as t-SNE; the numbers here are ours).
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
    """Return features [N, D] float32 of uint8 images [N, H, W, C], in eval mode: what the classifier sees."""
    compute = functools.partial(_features, model, variables)
    return batched_map(compute, images, batch_size=batch_size).astype(np.float32)


@functools.partial(fast, static=1)
def _features(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    features = model.apply(variables, as_float(images), train=False).features
    if "penultimate" not in features:
        raise ConfigError(
            "reads what the classifier sees, and the model's features have no 'penultimate'; they "
            f"are {names(features) or 'none'}"
        )
    return features["penultimate"].reshape(len(images), -1)


def separation(
    clean: Float[np.ndarray, "N D"],
    triggered: Float[np.ndarray, "M D"],
    labels: Integer[np.ndarray, " N"],
    twins: Integer[np.ndarray, " M"],
) -> dict[str, float]:
    """How far the triggered features lie from where they belong.

    Args:
        clean: [N, D] features of clean images of the classes `labels` [N].
        triggered: [M, D] features of triggered images, whose clean twins are the rows `twins` [M] of `clean`.

    Returns:
        `twin_distance`: the mean distance of a triggered image to its clean twin, over the mean distance of two clean images (0: on
        their twins; about 1: anywhere). `silhouette` in [-1, 1]: the mean silhouette of the triggered images as one cluster beside
        the clean classes (near 1: a cluster of its own; below 0: they lie in the classes). NaN where there are too few images.
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
    """Features [N, D] as points [N, 2] by `method` "pca" or "tsne" (scikit-learn's, started from PCA).

    All points are 0 where there is nothing to place: fewer than three images, features all alike (t-SNE would crash the process) or
    not finite.
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
    with threadpool_limits(
        1
    ):  # several threads that share their cores with a training run take four times as long
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
    """Return points and numbers of uint8 images [N, H, W, C] and of their stamped twins.

    Stamped are those of which the attacker wants another class (`relabel`). The points, by `pca`
    and `tsne`, are [N + M, 2], clean images first, with their `labels` [N]; the numbers are those
    of `separation`.
    """
    twins = np.flatnonzero(np.asarray(relabel(jnp.asarray(labels)) != labels))
    clean = penultimate(model, variables, images)
    triggered = clean[:0]
    if len(twins):
        triggered = penultimate(model, variables, stamp(images[twins]))
    both = np.concatenate([clean, triggered])
    points = {method: project(both, method) for method in ("pca", "tsne")}
    return points | {"labels": labels}, separation(clean, triggered, labels, twins)
