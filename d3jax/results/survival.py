"""The comparison of evolutions by how long backdoors survive, and predictions of forgetting.

Schedules of learning rates are compared with constant rates. No jax in here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..core.records import Row
from .artifacts import EvolutionEntry

TAUS = (0.9, 0.5, 0.1)
"""Thresholds on the ASR for survivability."""

ALLOWED = 0.01
"""The largest loss of mean ACC against the baseline with which a schedule still counts."""


class Predicted(NamedTuple):
    """A linear model's prediction of how one evolution run forgets a backdoor.

    `eigenvalues` [D], largest first, are those of the second moment of the first update's features.
    `shares` [D] are the shares of the trigger's direction along each eigenvector. `scores` [T + 1]
    of the trigger are measured, starting before the first update. `left` maps the name of a
    curvature to the shares [T] of the first score that the model predicts after each update.
    """

    eigenvalues: np.ndarray
    shares: np.ndarray
    scores: np.ndarray
    left: dict[str, np.ndarray]


def forgetting_rows(found: Predicted) -> list[Row]:
    """Return the rows of forgetting.csv for one evolution run, one for each update from 0 on.

    `score` is the mean increase of the target's logit by the trigger. `left` is its measured share
    of the first score. `left_squared` and `left_softmax` are this share as predicted under the
    curvature of the squared loss and of softmax at the start.
    """
    first = found.scores[0]
    return [
        {"update": update, "score": float(score), "left": float(score / first) if first else None}
        | {
            f"left_{name}": float(left[update - 1]) if update else 1.0
            for name, left in found.left.items()
        }
        for update, score in enumerate(found.scores)
    ]


def compare(
    rows: Sequence[Row], evolved: Sequence[Row], evolutions: Sequence[EvolutionEntry]
) -> list[Row]:
    """Return the rows of survival.csv, one for each (attack, evolution) over seeds and updates.

    `rows` are those of results.csv and `evolved` those of evolution.csv. `evolutions` are all that
    the config asks for, finished or not. Columns of a row:

    - `baseline`: the evolution of its group with a constant rate and the highest `valid_acc`. It is
      None for a group of one, or while a candidate has no numbers. It is chosen on clean models if
      the study has them, else on this attack's models, over the seeds that all candidates have. The
      ASR never decides.
    - `counts`: whether the mean ACC is at most `ALLOWED` below the baseline's. It is None if the
      two have different seeds.
    - `speedup`: the baseline's S at an ASR of 50 % divided by this evolution's S, inf if the latter
      is 0. If the rates were scaled to a mean, the constant rate of that mean (`equal_mean`)
      replaces the baseline, if there is one.
    - `speedup_bound`: ≥ if the baseline's S is censored, ≤ if this evolution's S is. If both are,
      `speedup` is None.
    - `survived_τ`: the mean S over seeds, None if the backdoor did not work before the first
      update.
    - `censored_τ`: the number of seeds whose backdoor survived all updates.
    - `…_std`: the sample standard deviation over seeds, None for one seed.
    """
    known = {entry.label: entry for entry in evolutions}
    evolved = [row for row in evolved if row["evolution"] in known]
    compared = []
    for attack in dict.fromkeys(row["attack"] for row in evolved):
        of_attack = [row for row in evolved if row["attack"] == attack]
        labels = dict.fromkeys(row["evolution"] for row in of_attack)
        found = {label: _one(attack, label, of_attack, rows, known[label]) for label in labels}
        seeds = {
            label: {row["seed"] for row in of_attack if row["evolution"] == label and row["update"]}
            for label in found
        }
        for label, row in found.items():
            equal, baseline = _equal_mean(label, known), _baseline(label, attack, evolved, known)
            row |= {"constant": known[label].constant, "equal_mean": equal, "baseline": baseline}
            row |= {"counts": None, "speedup": None, "speedup_bound": None}
            if baseline in found and seeds[baseline] == seeds[label]:
                row["counts"] = row["acc"] >= found[baseline]["acc"] - ALLOWED
            against = equal or baseline
            if against in found and seeds[against] == seeds[label]:
                row |= _speedup(found[against], row)
            compared.append(row)
    return compared


def _one(
    attack: str, label: str, evolved: Sequence[Row], rows: Sequence[Row], entry: EvolutionEntry
) -> Row:
    """Return survival.csv's mean columns of one evolution under one attack, over its seeds."""
    updates = [row for row in evolved if row["evolution"] == label and row["update"]]
    ended = [row for row in rows if row["attack"] == attack and row["defense"] == label]
    last = max((row["update"] for row in updates), default=0)
    found: Row = {"attack": attack, "evolution": label}
    found |= {"seeds": len({row["seed"] for row in updates}), "updates": last}
    for tau in TAUS:
        worked = [row for row in ended if row.get(f"survived_{tau:g}") is not None]
        counts = [row[f"survived_{tau:g}"] for row in worked]
        censored = sum(row[f"survived_{tau:g}_censored"] for row in worked)
        found[f"survived_{tau:g}"] = statistics.fmean(counts) if counts else None
        found[f"censored_{tau:g}"] = censored if counts else None
    for name in ("acc", "stale_acc", "valid_acc"):
        found |= _mean(name, name, updates)
    found |= _mean("asr_last", "asr", [row for row in updates if row["update"] == last])
    rates = _rates(entry)
    means = {"lr_mean": float(rates.mean()), "lr_max": float(rates.max())}
    return found | {"steps": len(rates)} | means


def _rates(entry: EvolutionEntry) -> np.ndarray:
    return np.asarray(entry.rates, np.float32)


def _mean(name: str, column: str, rows: Sequence[Row]) -> Row:
    """Return a column's mean and standard deviation over seeds, from its mean for each seed."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            by_seed.setdefault(row["seed"], []).append(row[column])
    values = [statistics.fmean(values) for values in by_seed.values()]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {name: statistics.fmean(values) if values else None, f"{name}_std": deviation}


def _candidates(label: str, known: Mapping[str, EvolutionEntry]) -> list[str]:
    """Return the labels of an evolution's possible baselines: constant rates of its group.

    There is none in a group of one.
    """
    group = [name for name, other in known.items() if other.group == known[label].group]
    return [name for name in group if known[name].constant] if len(group) > 1 else []


def _equal_mean(label: str, known: Mapping[str, EvolutionEntry]) -> str | None:
    """Return the label of the constant learning rate that equals an evolution's scaled mean rate.

    Return None if the rates were not scaled, or if there is no such constant rate.
    """
    if not known[label].scaled:
        return None
    mean = _rates(known[label]).mean()
    means = {name: _rates(known[name]).mean() for name in _candidates(label, known)}
    return next((name for name, one in means.items() if np.isclose(one, mean, rtol=1e-4)), None)


def _baseline(
    label: str, attack: str, evolved: Sequence[Row], known: Mapping[str, EvolutionEntry]
) -> str | None:
    """Return the label of an evolution's baseline: the constant rate of best validation ACC.

    It is one of the evolution's group; None without one. Clean models decide if there are any, else
    the models of this attack.
    """
    candidates = _candidates(label, known)
    triggered = {row["attack"] for row in evolved if row["asr"] is not None}
    chosen = _valid_acc(evolved, candidates, lambda other: other not in triggered)
    chosen = chosen or _valid_acc(evolved, candidates, lambda other: other == attack)
    return max(chosen, key=chosen.__getitem__) if chosen else None


def _valid_acc(
    evolved: Sequence[Row], candidates: Sequence[str], counted: Callable[[str], bool]
) -> dict[str, float]:
    """Return the mean validation ACC of candidate baselines, over models that all of them have.

    A model is one seed of an attack for which `counted` is true. Return {} if a candidate has no
    numbers.
    """
    found: dict[str, dict[tuple[str, int], list[float]]] = {name: {} for name in candidates}
    for row in evolved:
        value, model = row.get("valid_acc"), (row["attack"], row["seed"])
        if row["evolution"] in found and value is not None and counted(row["attack"]):
            found[row["evolution"]].setdefault(model, []).append(value)
    common = set.intersection(*map(set, found.values())) if found else set()
    return {
        name: statistics.fmean(value for model in common for value in values[model])
        for name, values in found.items()
        if common
    }


def _speedup(baseline: Row, row: Row) -> Row:
    before, after = baseline["survived_0.5"], row["survived_0.5"]
    censored = bool(baseline["censored_0.5"]), bool(row["censored_0.5"])
    if before is None or after is None or all(censored):
        return {}
    value = before / after if after else (float("inf") if before else 1.0)
    bound = {(True, False): "≥", (False, True): "≤"}.get(censored)
    return {"speedup": value, "speedup_bound": bound}


def survived(row: Row, tau: float) -> str:
    """Return for how many updates a backdoor survives (S_τ) as text, with ≥ if censored.

    `row` is a row of `compare`; it is censored if the backdoor of a seed survives all updates.
    Return – if there is no S_τ, as without a working trigger.
    """
    mean = row[f"survived_{tau:g}"]
    if mean is None:
        return "–"
    sign = "≥ " if row[f"censored_{tau:g}"] else ""
    return f"{sign}{mean:.1f}" if row["seeds"] > 1 else f"{sign}{mean:.0f}"


def ratio(row: Row) -> str:
    """Return as text how much faster an evolution removes a backdoor than its baseline does.

    It is the speed-up of a row of `compare`, with its bound; – without a speed-up.
    """
    value = row["speedup"]
    if value is None:
        return "–"
    return "∞" if value == float("inf") else f"{row['speedup_bound'] or ''} {value:.1f}×".strip()
