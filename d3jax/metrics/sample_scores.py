"""Scores by which defenders search for poisoned training images, and rates of their success.

A low score is suspicious. Backdoors are learned faster than the task. Early in a training, poisoned
images therefore have a low loss under their given label (ABL, Li et al., arXiv 2110.11571). They
also have a low predictive entropy (DLP, Ying & Wu, arXiv 2406.13098, according to published
summaries).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from ..core.images import as_float
from ..core.losses import cross_entropy
from ..core.types import Model, Split, Variables
from ..data.batched import batched_map
from ..runtime.compilation import fast

Score = Literal["entropy", "cross_entropy", "symmetric", "mixture"]
"""The scores by which a filter may rank images.

`mixture` is the posterior of the upper of two Gaussians fitted to the cross-entropy. It ranks
images as the cross-entropy does, and it also tells how many images belong to the lower Gaussian.
"""

ALPHA, BETA, FLOOR = 0.1, 1.0, 1e-4
"""The constants α, β and ε of DBD's symmetric cross-entropy (Huang et al., arXiv 2202.03423).

It is α CE + β RCE, with log 0 replaced by log ε.
"""


def entropy(logits: Float[jax.Array, "B K"]) -> Float32[jax.Array, " B"]:
    """Return the entropy [B], in nats, of the class distribution of each row of logits [B, K].

    It does not depend on the given label.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(jnp.exp(logs) * logs).sum(-1)


def symmetric_cross_entropy(
    logits: Float[jax.Array, "B K"], labels: Int32[jax.Array, " B"]
) -> Float32[jax.Array, " B"]:
    """Return the symmetric cross-entropy α CE + β RCE [B], in nats, of logits under labels.

    Wang et al., ICCV 2019. RCE = −Σ p log q, where q is 1 for the given label. For the other
    classes log 0 is replaced by log 1e-4.
    """
    given = jnp.take_along_axis(jax.nn.softmax(logits.astype(jnp.float32)), labels[:, None], 1)[
        :, 0
    ]
    return ALPHA * cross_entropy(logits, labels) - BETA * jnp.log(FLOOR) * (1 - given)


@functools.partial(fast, static=1)
def _scores(
    model: Model, variables: Variables, images: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    logits = model.apply(variables, as_float(images), train=False).logits
    finite = jnp.isfinite(logits).all(-1)
    scores = {
        "entropy": entropy(logits),
        "cross_entropy": cross_entropy(logits, labels),
        "symmetric": symmetric_cross_entropy(logits, labels),
    }
    scores = {name: jnp.where(finite, values, jnp.inf) for name, values in scores.items()}
    return scores | {"right": (logits.argmax(-1) == labels) & finite}


NAMES = get_args(Score)
"""The names of all scores."""


def scores_of(
    model: Model,
    variables: Variables,
    split: Split,
    names: Sequence[str] = NAMES,
    batch_size: int = 500,
) -> dict[str, Float32[np.ndarray, " N"]]:
    """Return suspicion scores of N training images under a model, as a dict from name to [N].

    `names` are the scores to compute, each float32. The model runs in eval mode on images without
    augmentation. Besides `NAMES` there is the score `right`, which is 1 where the model predicts
    the given label, else 0. Images whose logits are not all finite score +inf, and 0 for `right`.
    """
    compute = functools.partial(_scores, model, variables)
    found = batched_map(compute, *split, batch_size=batch_size)
    found = {name: values.astype(np.float32) for name, values in found.items()}
    if "mixture" in names:
        found["mixture"] = mixture(found["cross_entropy"])
    return {name: found[name] for name in names}


def mixture(values: Float[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """Return the posterior [N] of the upper of two Gaussians that are fitted to `values` [N].

    The upper Gaussian is the one with the higher mean; the result is float32. Beyond either mean
    the posterior is constant, so that it never falls as values rise. (Far outside the means, the
    wider Gaussian would have the greater density again.) Values that are not finite have posterior
    1. All values have it where the finite ones are equal.
    """
    from sklearn.mixture import GaussianMixture

    finite = np.isfinite(values)
    posterior = np.ones(len(values), np.float32)
    known = values[finite].astype(np.float64)[:, None]
    if len(known) > 1 and np.ptp(known) > 0:
        fitted = GaussianMixture(2, random_state=0, reg_covar=1e-6).fit(known)
        means = np.asarray(fitted.means_)
        between = np.clip(known, means.min(), means.max())
        posterior[finite] = fitted.predict_proba(between)[:, np.argmax(means[:, 0])]
    return posterior


def ranking(
    scores: Float[np.ndarray, " N"], ties: Float[np.ndarray, " N"] | None = None
) -> Int[np.ndarray, " N"]:
    """Return the row numbers of N images, sorted from the lowest score to the highest.

    Of rows with equal scores the one with the lower `ties` [N] comes first, then the earlier one.
    """
    return np.lexsort((np.zeros(len(scores)) if ties is None else ties, scores))


TIES = {
    "entropy": "cross_entropy",
    "mixture": "cross_entropy",
    "rescored": "rescored_entropy",
    "rescored_entropy": "rescored",
}
"""The score that breaks the ties of a score; entropy breaks those of all others."""


def ties_of(name: str, scores: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the scores [N] that break ties between training images with an equal score `name`.

    Ties are common: many cross-entropies round to 0. Entropy breaks ties, except that
    cross-entropy breaks those of `entropy` and `mixture`. `rescored` and `rescored_entropy` break
    each other's. A score of a sample detector has none, and the result is None.
    """
    return scores.get(TIES.get(name, "entropy"))


def precision_recall(
    scores: Float[np.ndarray, " N"],
    flags: Bool[np.ndarray, " N"],
    ties: Float[np.ndarray, " N"] | None = None,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return precision and recall [N] if the k lowest-scored images are called poisoned, k = 1 … N.

    The images are ordered by `ranking`, and `flags` [N] bool marks the poisoned ones. For logs and
    reports only, because a defender does not have the flags.
    """
    hits = np.cumsum(np.asarray(flags)[ranking(scores, ties)])
    return hits / np.arange(1, len(hits) + 1), hits / max(int(np.sum(flags)), 1)


def auroc(scores: Float[np.ndarray, " N"], flags: Bool[np.ndarray, " N"]) -> float:
    """Return the AUROC: the probability that a poisoned image scores lower than a clean one.

    Ties count one half. `flags` [N] bool marks the poisoned images. NaN unless there are both
    kinds.
    """
    from sklearn.metrics import roc_auc_score

    if not 0 < np.sum(flags) < len(flags):
        return float("nan")
    return float(roc_auc_score(np.asarray(flags), -np.minimum(scores, np.float32(1e30))))


SHARES = (0.01, 0.05, 0.1)
"""Shares of the images with the lowest scores, at which precision and recall are reported."""


def curves_of(
    flags: np.ndarray, found: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return a dict from score name to precision and recall curves [N] of finding poisoned images.

    `flags` [N] bool marks the poisoned rows. Boolean arrays and all-zero scores are left out.
    """
    scored = [
        name
        for name, values in sorted(found.items())
        if values.dtype != np.bool_ and np.any(values)
    ]
    return {name: precision_recall(found[name], flags, ties_of(name, found)) for name in scored}


def filter_rates(
    flags: np.ndarray,
    found: Mapping[str, np.ndarray],
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """Return a table row (dict) per score: AUROC, precision and recall of finding poisoned images.

    `found` has the scores [N], and `curves` their `curves_of`. Precision and recall are those of
    the lowest `SHARES`. All rates are None in a clean set.
    """
    rows = []
    for name, (precision, recall) in curves.items():
        rate = auroc(found[name], flags)
        row = {"score": name, "auroc": None if np.isnan(rate) else rate}
        for share in SHARES:
            at = max(1, int(share * len(flags))) - 1
            row[f"precision_{share:g}"] = float(precision[at]) if flags.any() else None
            row[f"recall_{share:g}"] = float(recall[at]) if flags.any() else None
        rows.append(row)
    return rows


def choice_rates(flags: np.ndarray, found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Count a defence's suspects; measure their precision, their recall, and what keeps its label.

    `found` has the masks `suspects` and `labelled` [N] bool: the latter are the images that kept
    their labels. A share of no images is None.
    """
    shares = {f"{name}_poisoned": flags[found[name]] for name in ("suspects", "labelled")}
    shares["poison_suspected"] = found["suspects"][flags]
    means = {name: float(chosen.mean()) if len(chosen) else None for name, chosen in shares.items()}
    return {"suspects": int(found["suspects"].sum())} | means
