"""Evolutions compared: how long backdoors survived, which constant rate clean validation chooses, what smart rates gain. No jax."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .artifacts import Row

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


def forgetting_rows(predicted: Sequence[Predicted]) -> list[Row]:
    """The rows of forgetting.csv: after each update, by how much the trigger raises its class's logit (`score`), and the share of it that is
    left: measured, and as a linear model predicts it under the curvature of squared loss and of softmax's at the start."""
    return [
        {"attack": one.attack, "evolution": one.evolution, "update": update, "score": float(score)}
        | {"left": float(score / one.scores[0]) if one.scores[0] else None}
        | {
            f"left_{name}": float(left[update - 1]) if update else 1.0
            for name, left in one.left.items()
        }
        for one in predicted
        for update, score in enumerate(one.scores)
    ]


def compare(rows: Sequence[Row], evolved: Sequence[Row], shown: Mapping[str, Shown]) -> list[Row]:
    """One row for each (attack, evolution), over its seeds and updates: the rows of survival.csv.

    `rows` are those of results.csv, `evolved` those of evolution.csv. `baseline` is the evolution of the same group with a constant
    rate and the highest `valid_acc` (None for a group of one): of the lineages of a clean model where the study has them, else of this
    attack's, over the seeds that all candidates have; ASR is not looked at. `counts` says whether the mean ACC is at most a point below
    the baseline's; None where not both have the same seeds. `speedup` is the baseline's S at an ASR of 50 % over this one's, or, of one
    that was scaled to a mean, S under the constant rate of that mean (`equal_mean`, where there is one): inf where this one's is 0,
    `speedup_bound` ≥ where the other's is censored and ≤ where this one's is; where both are there is no number. A backdoor that did
    not work before the first update counts for no threshold. `survived_τ` are means over seeds, `censored_τ` count the seeds on which
    the backdoor was there to the end; `…_std` are sample standard deviations over seeds (None for one).
    """
    compared = []
    for attack in dict.fromkeys(row["attack"] for row in evolved):
        mine = [row for row in evolved if row["attack"] == attack]
        found = {
            label: _one(attack, label, mine, rows, shown[label])
            for label in dict.fromkeys(row["evolution"] for row in mine)
        }
        seeds = {
            label: {row["seed"] for row in mine if row["evolution"] == label and row["update"]}
            for label in found
        }
        for label, row in found.items():
            equal, baseline = _equal(label, shown), _chosen(label, attack, evolved, shown)
            row |= {"constant": shown[label].constant, "equal_mean": equal, "baseline": baseline}
            row |= {"counts": None, "speedup": None, "speedup_bound": None}
            if baseline in found and seeds[baseline] == seeds[label]:
                row["counts"] = row["acc"] >= found[baseline]["acc"] - ALLOWED
            against = equal or baseline
            if against in found and seeds[against] == seeds[label]:
                row |= _speedup(found[against], row)
            compared.append(row)
    return compared


def _one(attack: str, label: str, evolved: Sequence[Row], rows: Sequence[Row], shown: Shown) -> Row:
    lines = [row for row in evolved if row["evolution"] == label and row["update"]]
    ended = [row for row in rows if row["attack"] == attack and row["defense"] == label]
    row: Row = {
        "attack": attack,
        "evolution": label,
        "seeds": len({line["seed"] for line in lines}),
    }
    row["updates"] = max((line["update"] for line in lines), default=0)
    for tau in TAUS:
        mine = [one for one in ended if one.get(f"survived_{tau:g}") is not None]
        counts = [one[f"survived_{tau:g}"] for one in mine]
        row[f"survived_{tau:g}"] = statistics.fmean(counts) if counts else None
        row[f"censored_{tau:g}"] = (
            sum(one[f"survived_{tau:g}_censored"] for one in mine) if counts else None
        )
    for name in ("acc", "stale_acc", "valid_acc"):
        row |= _mean(name, name, lines)
    row |= _mean("asr_last", "asr", [line for line in lines if line["update"] == row["updates"]])
    return row | {
        "steps": len(shown.rates),
        "lr_mean": float(np.mean(shown.rates)),
        "lr_max": float(np.max(shown.rates)),
    }


def _mean(name: str, column: str, lines: Sequence[Row]) -> Row:
    """A column's mean over seeds, and its deviation, as columns of `name`; of a seed's updates the mean counts."""
    by_seed: dict[int, list[float]] = {}
    for line in lines:
        if line.get(column) is not None:
            by_seed.setdefault(line["seed"], []).append(line[column])
    values = [statistics.fmean(mine) for mine in by_seed.values()]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {name: statistics.fmean(values) if values else None, f"{name}_std": deviation}


def _alike(label: str, shown: Mapping[str, Shown]) -> list[str]:
    """The constant rates of an evolution's group, none where it is alone."""
    group = [name for name, other in shown.items() if other.group == shown[label].group]
    return [name for name in group if shown[name].constant] if len(group) > 1 else []


def _equal(label: str, shown: Mapping[str, Shown]) -> str | None:
    """The constant rate of the mean that an evolution was scaled to."""
    mean = shown[label].rates.mean()
    equal = [
        name
        for name in _alike(label, shown)
        if np.isclose(shown[name].rates.mean(), mean, rtol=1e-4)
    ]
    return equal[0] if shown[label].scaled and equal else None


def _chosen(
    label: str, attack: str, evolved: Sequence[Row], shown: Mapping[str, Shown]
) -> str | None:
    """The constant rate that clean validation chooses for an evolution's group."""
    alike = _alike(label, shown)
    triggered = {row["attack"] for row in evolved if row["asr"] is not None}

    def means(counted) -> dict[str, float]:
        """Over the models, seeds of an attack, that all candidates began with."""
        found: dict[str, dict[tuple[str, int], list[float]]] = {}
        for row in evolved:
            if (
                row["evolution"] in alike
                and row.get("valid_acc") is not None
                and counted(row["attack"])
            ):
                found.setdefault(row["evolution"], {}).setdefault(
                    (row["attack"], row["seed"]), []
                ).append(row["valid_acc"])
        common = (
            set.intersection(*map(set, found.values()))
            if len(found) == len(alike) and alike
            else set()
        )
        return (
            {
                name: statistics.fmean(x for model in common for x in found[name][model])
                for name in alike
            }
            if common
            else {}
        )

    chosen = means(lambda other: other not in triggered) or means(lambda other: other == attack)
    return max(chosen, key=chosen.__getitem__) if chosen else None


def _speedup(baseline: Row, row: Row) -> Row:
    before, after = baseline["survived_0.5"], row["survived_0.5"]
    censored = bool(baseline["censored_0.5"]), bool(row["censored_0.5"])
    if before is None or after is None or all(censored):
        return {}
    value = before / after if after else (float("inf") if before else 1.0)
    return {
        "speedup": value,
        "speedup_bound": {(True, False): "≥", (False, True): "≤"}.get(censored),
    }


def survived(row: Row, tau: float) -> str:
    """S_τ of a row of `compare` as text: ≥ where it is censored on some seed; – without a trigger."""
    mean = row[f"survived_{tau:g}"]
    if mean is None:
        return "–"
    return ("≥ " if row[f"censored_{tau:g}"] else "") + (
        f"{mean:.1f}" if row["seeds"] > 1 else f"{mean:.0f}"
    )


def ratio(row: Row) -> str:
    """The speed-up of a row of `compare` as text."""
    value = row["speedup"]
    if value is None:
        return "–"
    return "∞" if value == float("inf") else f"{row['speedup_bound'] or ''} {value:.1f}×".strip()
