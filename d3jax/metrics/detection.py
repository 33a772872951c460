"""Rates of detectors of poisoned samples or triggered inputs, from their scores and flags."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from ..core.records import Row

FPRS = (0.01, 0.05)
"""False-positive rates at which the true-positive rate is reported."""


def detection_rates(
    scores: Float[np.ndarray, " N"],
    flagged: Bool[np.ndarray, " N"],
    positive: Bool[np.ndarray, " N"],
) -> Row:
    """Return a dict of a detector's AUROC, precision, recall and more, from scores and flags.

    Args:
        scores: float [N], higher is more suspicious. +inf ranks highest, −inf and NaN lowest.
        flagged: bool [N], the rows flagged by the detector's own rule.
        positive: bool [N], the rows that are poisoned or triggered in truth.

    Returns:
        A dict with `auroc`, with `tpr_1` and `tpr_5`, with `precision`, `recall` and `fpr` of the
        flags, and with the numbers of `positive` and `flagged` rows. `tpr_1` is the largest
        true-positive rate at a false-positive rate of at most 1 %, and `tpr_5` that at 5 %. A rate
        that is not defined is None.
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
    """Return the rank [N] of N scores among the distinct scores, with NaN ranked as −inf."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    return np.unique(known, return_inverse=True)[1]
