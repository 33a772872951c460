"""How well scores and flags find what is poisoned or triggered."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from ..core.records import Row

FPRS = (0.01, 0.05)
"""False-positive rates at which the true-positive rate is given."""


def detection_rates(
    scores: Float[np.ndarray, " N"],
    flagged: Bool[np.ndarray, " N"],
    positive: Bool[np.ndarray, " N"],
) -> Row:
    """Return rates of a detector, from N scores (higher is more suspicious) and its own flags.

    Args:
        scores: float [N]; a score that is not finite ranks last on its side, NaN lowest.
        flagged: bool [N], by the detector's own rule.
        positive: bool [N], the truth.

    Returns:
        `auroc`; `tpr_1` and `tpr_5`, the largest true-positive rates at false-positive rates of at
        most 1 % and 5 %; `precision`, `recall` and `fpr` of the flags; and the numbers of `positive`
        and `flagged`. None where a rate is not defined.
    """
    flagged, positive = np.asarray(flagged, bool), np.asarray(positive, bool)
    count, hits = int(flagged.sum()), int((flagged & positive).sum())
    wanted, others = int(positive.sum()), int((~positive).sum())
    rates: Row = dict.fromkeys(("auroc", *(f"tpr_{100 * fpr:g}" for fpr in FPRS)))
    if wanted and others:
        from sklearn.metrics import roc_auc_score, roc_curve

        ranks = _ranks(scores)
        false, true, _ = roc_curve(positive, ranks, drop_intermediate=False)
        rates = {"auroc": float(roc_auc_score(positive, ranks))}
        rates |= {f"tpr_{100 * fpr:g}": float(true[false <= fpr].max()) for fpr in FPRS}
    return rates | {
        "precision": hits / count if count else None,
        "recall": hits / wanted if wanted else None,
        "fpr": (count - hits) / others if others else None,
        "positive": wanted,
        "flagged": count,
    }


def _ranks(scores: Float[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Return the rank [N] of every score among the different ones; NaN is below all."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    return np.unique(known, return_inverse=True)[1]
