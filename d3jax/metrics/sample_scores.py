"""Scores by which a defender looks for poisoned training images, and how well each finds them. Low means suspect.

Backdoors are learned faster than the task, so early in a training poisoned images have a low loss under the label they were given (ABL, Li
et al., arXiv 2110.11571) and a low predictive entropy (DLP, Ying & Wu, arXiv 2406.13098, as published summaries have it).
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
"""What a filter may rank by; `mixture` is the posterior of the upper of two Gaussians fitted to the cross-entropy, which ranks as
that does, but says how many images belong below."""

ALPHA, BETA, FLOOR = 0.1, 1.0, 1e-4
"""Symmetric cross-entropy as DBD has it (Huang et al., arXiv 2202.03423): α CE + β RCE, with log 0 taken as log 1e-4."""


def entropy(logits: Float[jax.Array, "B K"]) -> Float32[jax.Array, " B"]:
    """Entropy [B] of the predicted distribution, in nats; of the given label it knows nothing."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(jnp.exp(logs) * logs).sum(-1)


def symmetric_cross_entropy(
    logits: Float[jax.Array, "B K"], labels: Int32[jax.Array, " B"]
) -> Float32[jax.Array, " B"]:
    """α CE + β RCE of each row [B], in nats (Wang et al., ICCV 2019); RCE = −Σ p log q with log 1e-4 for the other classes' log 0."""
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
"""Every score there is."""


def scores_of(
    model: Model,
    variables: Variables,
    split: Split,
    names: Sequence[str] = NAMES,
    batch_size: int = 500,
) -> dict[str, Float32[np.ndarray, " N"]]:
    """The scores `names` [N] float32 of every image of a split, as they are and in eval mode; besides those of `NAMES` there is `right`,
    1 where the model says the given label. Model outputs that are not finite score +inf, and are not right."""
    compute = functools.partial(_scores, model, variables)
    found = batched_map(compute, *split, batch_size=batch_size)
    found = {name: values.astype(np.float32) for name, values in found.items()}
    if "mixture" in names:
        found["mixture"] = mixture(found["cross_entropy"])
    return {name: found[name] for name in names}


def mixture(values: Float[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """The posterior [N] float32 of the upper of two Gaussians that are fitted to `values` [N]; all 1 where they are all alike.

    Beyond either mean it stays what it is there, and so never falls: far outside, the wider one has the greater density again.
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
    """Rows [N] from the lowest score up; of equal ones the one with the lower `ties` [N] comes first, then the earlier one."""
    return np.lexsort((np.zeros(len(scores)) if ties is None else ties, scores))


TIES = {
    "entropy": "cross_entropy",
    "mixture": "cross_entropy",
    "rescored": "rescored_entropy",
    "rescored_entropy": "rescored",
}


def ties_of(name: str, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """By what images are ranked [N] whose score `name` is the same, as all cross-entropies are that round to 0: by entropy, and those of
    one entropy or posterior by cross-entropy."""
    return scores[TIES.get(name, "entropy")]


def precision_recall(
    scores: Float[np.ndarray, " N"],
    flags: Bool[np.ndarray, " N"],
    ties: Float[np.ndarray, " N"] | None = None,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Of the first k images of `ranking`, for k = 1 … N, the share that is poisoned (`flags` [N] bool), and the share of the poisoned
    there.

    For logs and reports only: no defender has the flags.
    """
    hits = np.cumsum(np.asarray(flags)[ranking(scores, ties)])
    return hits / np.arange(1, len(hits) + 1), hits / max(int(np.sum(flags)), 1)


def auroc(scores: Float[np.ndarray, " N"], flags: Bool[np.ndarray, " N"]) -> float:
    """The probability that a poisoned image scores lower than a clean one, ties half; NaN without both kinds."""
    from sklearn.metrics import roc_auc_score

    if not 0 < np.sum(flags) < len(flags):
        return float("nan")
    return float(roc_auc_score(np.asarray(flags), -np.minimum(scores, np.float32(1e30))))


SHARES = (0.01, 0.05, 0.1)
"""Shares of the images with the lowest scores for which precision and recall are given."""


def curves_of(
    flags: np.ndarray, found: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return precision and recall [N] of the lowest k rows, for every score in `found` [N], by name."""
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
    """Return how well low scores find the poison: a row for every score in `found` [N].

    AUROC, and precision and recall of the lowest `SHARES`; None in a clean set.
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
    """Return how many `suspects` [N] bool there are, and which share of them is poisoned.

    And which share of the images that kept their labels (`labelled` [N] bool).
    """
    shares = {f"{name}_poisoned": flags[found[name]] for name in ("suspects", "labelled")}
    means = {name: float(chosen.mean()) if len(chosen) else None for name, chosen in shares.items()}
    return {"suspects": int(found["suspects"].sum())} | means
