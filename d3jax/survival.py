"""Evolutions compared: how long backdoors survived, which constant rate clean validation chooses, what smart rates gain. No jax."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .rows import Row

TAUS = (0.9, 0.5, 0.1)
"""Thresholds on ASR of survivability."""

ALLOWED = 0.01
"""A strategy counts while its mean ACC is at most so much below the baseline's."""


class Shown(NamedTuple):
    """What must be known of an evolution besides its rows: the learning `rates` [n] of an update, the `group` of those that differ
    from it in their rates alone, whether its rate is constant, and whether it was scaled to a `mean`."""

    rates: np.ndarray
    group: str
    constant: bool
    scaled: bool = False


class Predicted(NamedTuple):
    """For one lineage: the `eigenvalues` [D], largest first, of its first update's features, and which `shares` [D] of the trigger's
    direction lie along their eigenvectors; the measured `scores` [T + 1] of the trigger, from before the first update on, and the
    shares of the first [T] that a linear model has `left`, by the curvature's name."""

    attack: str
    evolution: str
    eigenvalues: np.ndarray
    shares: np.ndarray
    scores: np.ndarray
    left: dict[str, np.ndarray]


def compare(rows: Sequence[Row], evolved: Sequence[Row], shown: Mapping[str, Shown]) -> list[Row]:
    """One row for each (attack, evolution), over its seeds and updates: the rows of survival.csv.

    `rows` are those of results.csv, `evolved` those of evolution.csv. `baseline` is the evolution of the same group with a constant
    rate and the highest `valid_acc` (None for a group of one): of the lineages of a clean model where the study has them, else of this
    attack's; ASR is not looked at. One that was scaled to a mean is held against the constant rate of that mean, where there is one (`equal_mean`).
    `counts` says whether the mean ACC is at most a point below the baseline's, `speedup` is the baseline's S at an ASR of 50 % over
    this one's (inf where this one's is 0), `speedup_bound` ≥ where the baseline's is censored and ≤ where this one's is; where both
    are there is no number. A backdoor that did not work before the first update counts for no threshold. `survived_τ` are means over
    seeds, `censored_τ` count the seeds on which the backdoor was there to the end.
    """
    compared = []
    for attack in dict.fromkeys(row["attack"] for row in evolved):
        mine = [row for row in evolved if row["attack"] == attack]
        found = {
            label: _one(attack, label, mine, rows, shown[label]) for label in dict.fromkeys(row["evolution"] for row in mine)
        }
        for label, row in found.items():
            equal = _equal(label, shown)
            baseline = equal or _chosen(label, attack, evolved, shown)
            against = found.get(baseline)
            row |= {"constant": shown[label].constant, "equal_mean": equal is not None, "baseline": baseline}
            row |= {"counts": None, "speedup": None, "speedup_bound": None}
            if against:
                row["counts"] = row["acc"] >= against["acc"] - ALLOWED
                row |= _speedup(against, row)
            compared.append(row)
    return compared


def _one(attack: str, label: str, evolved: Sequence[Row], rows: Sequence[Row], shown: Shown) -> Row:
    lines = [row for row in evolved if row["evolution"] == label and row["update"]]
    ended = [row for row in rows if row["attack"] == attack and row["defense"] == label and row.get("survived_0.5") is not None]
    row: Row = {"attack": attack, "evolution": label, "seeds": len({line["seed"] for line in lines})}
    row["updates"] = max((line["update"] for line in lines), default=0)
    began = {line["seed"]: line["asr"] for line in evolved if line["evolution"] == label and not line["update"]}
    for tau in TAUS:
        mine = [one for one in ended if (began.get(one["seed"]) or 0) >= tau]
        counts = [one[f"survived_{tau:g}"] for one in mine]
        row[f"survived_{tau:g}"] = statistics.fmean(counts) if counts else None
        row[f"censored_{tau:g}"] = sum(one[f"survived_{tau:g}_censored"] for one in mine) if counts else None
    for name in ("acc", "stale_acc", "valid_acc"):
        values = [line[name] for line in lines if line.get(name) is not None]
        row[name] = statistics.fmean(values) if values else None
    last = [
        line["asr"] for line in lines if line["asr"] is not None and line["update"] == max(other["update"] for other in lines)
    ]
    return row | {
        "asr_last": statistics.fmean(last) if last else None,
        "steps": len(shown.rates), "lr_mean": float(np.mean(shown.rates)), "lr_max": float(np.max(shown.rates)),
    }  # fmt: skip


def _alike(label: str, shown: Mapping[str, Shown]) -> list[str]:
    """The constant rates of an evolution's group, none where it is alone."""
    group = [name for name, other in shown.items() if other.group == shown[label].group]
    return [name for name in group if shown[name].constant] if len(group) > 1 else []


def _equal(label: str, shown: Mapping[str, Shown]) -> str | None:
    """The constant rate of the mean that an evolution was scaled to."""
    mean = shown[label].rates.mean()
    equal = [name for name in _alike(label, shown) if np.isclose(shown[name].rates.mean(), mean, rtol=1e-4)]
    return equal[0] if shown[label].scaled and equal else None


def _chosen(label: str, attack: str, evolved: Sequence[Row], shown: Mapping[str, Shown]) -> str | None:
    """The constant rate that clean validation chooses for an evolution's group."""
    alike = _alike(label, shown)
    triggered = {row["attack"] for row in evolved if row["asr"] is not None}

    def means(counted) -> dict[str, float]:
        found = {}
        for name in alike:
            mine = [
                row for row in evolved if row["evolution"] == name and row.get("valid_acc") is not None and counted(row["attack"])
            ]
            if mine:
                found[name] = statistics.fmean(row["valid_acc"] for row in mine)
        return found

    clean, own = means(lambda other: other not in triggered), means(lambda other: other == attack)
    chosen = clean if len(clean) == len(alike) else own  # the same models for all candidates
    return max(chosen, key=chosen.__getitem__) if chosen else None


def _speedup(baseline: Row, row: Row) -> Row:
    before, after = baseline["survived_0.5"], row["survived_0.5"]
    censored = bool(baseline["censored_0.5"]), bool(row["censored_0.5"])
    if before is None or after is None or all(censored):
        return {}
    value = before / after if after else (float("inf") if before else 1.0)
    return {"speedup": value, "speedup_bound": {(True, False): "≥", (False, True): "≤"}.get(censored)}


def survived(row: Row, tau: float) -> str:
    """S_τ of a row of `compare` as text: ≥ where it is censored on some seed; – without a trigger."""
    mean = row[f"survived_{tau:g}"]
    if mean is None:
        return "–"
    return ("≥ " if row[f"censored_{tau:g}"] else "") + (f"{mean:.1f}" if row["seeds"] > 1 else f"{mean:.0f}")


def ratio(row: Row) -> str:
    """The speed-up of a row of `compare` as text."""
    value = row["speedup"]
    if value is None:
        return "–"
    return "∞" if value == float("inf") else f"{row['speedup_bound'] or ''} {value:.1f}×".strip()
