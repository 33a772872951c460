"""Summaries of a study's result rows: means over seeds, outcomes and detections as text. No jax."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.records import Row
from .outcomes import KEEPS, NEAR, READ, verdict

RATES = ("acc", "asr", "ra", "der")


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Summarise rows of results.csv over seeds: one row per (dataset, model, attack, defense).

    Rows are in order of first appearance. They have those four columns and:

    - `acc`, `asr`, `ra`, `der`: the mean. Numbers that are None or not finite are left out.
    - `acc_std` (and so on): the sample standard deviation, None for a single seed.
    - `acc_change` (and so on, but not for `der`): the mean change against the backdoored model of
      the same seed and poison rate.
    - `n`: the number of seeds with an ACC.
    - `failed`: the number of seeds with a `status` other than "ok"; `status` is the first of them.
    - `kept`: the number of seeds with an ASR of 50 % or more.
    - `worked`: the number of seeds whose backdoored model has an ASR of 50 % or more, None if no
      such model is known.
    - `asr_worst`: the highest ASR.
    - `misread`: whether RA is below `READ` of ACC on a seed.
    - `moved`: the number of seeds on which the trigger leads to one other class as it led to the
      target, with a `moved_asr` of 50 % or more; `moved_to`: the names of these classes.
    - `seconds`: the mean time, including the time of a search for a trigger.
    - `guesses`, `guessed`: whether ACC is near chance, after the defence and before it, for rows
      that have their number of `classes`.
    - `untouched`: the number of seeds on which a defence found nothing to repair.
    - `searched`: what a search for a trigger found, None for defences that do not search.
    - `published`: the published numbers of the rows, joined, None without any.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in _distinct(rows):
        groups.setdefault((row["dataset"], row["model"], row["attack"], row["defense"]), []).append(
            row
        )
    before = {_run(row): row for row in rows if row["defense"] == "none"}
    return [_summary(key, group, before) for key, group in groups.items()]


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Drop repeated rows of results.csv for a backdoored model that several seeds share."""
    models = {
        (*_run(row)[:4], row.get("attack_seed", row["seed"])): row
        for row in reversed(rows)
        if row["defense"] == "none"
    }
    return [row for row in rows if row["defense"] != "none" or row in models.values()]


def _run(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("dataset", "model", "attack", "poison_rate", "seed"))


def _summary(key: tuple[str, ...], group: list[Row], before: Mapping[tuple[Any, ...], Row]) -> Row:
    summary: Row = dict(zip(("dataset", "model", "attack", "defense"), key, strict=True))
    for rate in RATES:
        values = _finite(row[rate] for row in group)
        summary[rate] = statistics.fmean(values) if values else None
        summary[f"{rate}_std"] = statistics.stdev(values) if len(values) > 1 else None
        pairs = [
            (row[rate], before.get(_run(row), {}).get(rate))
            for row in group
            if key[3] != "none" and rate != "der"
        ]
        changes = [after - first for after, first in pairs if len(_finite((after, first))) == 2]
        summary[f"{rate}_change"] = statistics.fmean(changes) if changes else None
    failures = [row["status"] for row in group if row.get("status") not in (None, "ok")]
    rates = _finite(row["asr"] for row in group)
    seconds = [
        first + sum(_finite([row.get("search_seconds")]))
        for row in group
        for first in _finite([row["seconds"]])
    ]
    reads = [(row["ra"], row["acc"]) for row in group]
    moved = [row["moved_to"] for row in group if (row.get("moved_asr") or 0) >= KEEPS]
    earlier = _finite(before.get(_run(row), {}).get("asr") for row in group)
    searched = [row for row in group if row.get("chosen")]
    beside = dict.fromkeys(
        str(row["published"]) for row in group if row.get("published") not in (None, "none")
    )
    chance = 1 / group[0]["classes"] if group[0].get("classes") else -1
    first = _finite(before.get(_run(row), {}).get("acc") for row in group)
    return summary | {
        "guesses": _near(summary["acc"], chance),
        "guessed": _near(statistics.fmean(first) if first else None, chance),
        "n": len(_finite(row["acc"] for row in group)),
        "failed": len(failures),
        "status": failures[0] if failures else "ok",
        "kept": sum(value >= KEEPS for value in rates),
        "worked": sum(value >= KEEPS for value in earlier) if earlier else None,
        "asr_worst": max(rates, default=None),
        "misread": any(ra < READ * acc - 1e-9 for ra, acc in reads if len(_finite((ra, acc))) == 2),
        "moved": len(moved),
        "moved_to": ", ".join(dict.fromkeys(moved)),
        "seconds": statistics.fmean(seconds) if seconds else None,
        "published": " / ".join(beside) or None,
        "untouched": sum(row["target"] == -1 for row in searched),
        "searched": "; ".join(dict.fromkeys(_searched(row) for row in searched)) or None,
    }


def _near(acc: float | None, chance: float) -> bool:
    """Return whether an accuracy is near chance: no image is classified better than by guessing."""
    return acc is not None and acc <= chance + NEAR * (1 - chance)


def _searched(row: Row) -> str:
    """Return as text a search's target class, how it was chosen, and its inverted trigger's ASR."""
    if row["target"] == -1:
        return row["chosen"]
    turns = (
        ""
        if row["trigger_success"] is None
        else f", inverted-trigger ASR {100 * row['trigger_success']:.0f} %"
    )
    return f"class {row['target']} {row['chosen']}{turns}"


def _finite(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def headline(group: Sequence[Row]) -> str:
    """Return sentences on one attack: the results of the best and of the worst defence.

    `group` are the rows of `summarise` for this attack.
    """
    before = next((row for row in group if row["defense"] == "none"), None)
    tried = [row for row in group if row["defense"] != "none"]
    ranked = _ranked([row for row in tried if row["asr"] is not None and row["acc"] is not None])
    if before and before["n"] and before["asr"] is None:
        return f"ACC is {_percent(before['acc'])}. Without a trigger, ASR is undefined."
    start = _percent(before["asr"]) if before and before["n"] else ""
    parts = (
        [f"The model has learned almost nothing (ACC {_percent(before['acc'])})."]
        if before and before["guesses"]
        else []
    )
    if before and start and not before["kept"]:
        parts.append(
            f"The backdoor does not work even without a defence (ASR {start}), "
            "so there is little to remove."
        )
    if ranked:
        best, lost = ranked[0], all(row["kept"] or row["moved"] for row in ranked)
        lead = "No defence removes the backdoor. " if lost and len(ranked) > 1 else ""
        name = (
            f"{best['defense']} is the {'better' if len(ranked) == 2 else 'best'} defence: "
            if len(ranked) > 1
            else f"With {best['defense']}, "
        )
        asr = _percent(best["asr"])
        change = f"ASR changes from {start} to {asr}" if start else f"ASR is {asr}"
        words = verdict(best)
        outcome = "" if words == "removed" else f" (outcome “{words}”)"
        parts.append(f"{lead}{name}{change} and {_cost(best)}{outcome}.")
    elif before and start:
        what = "No defence gave a result." if tried else "No defence was run."
        parts.append(f"ASR is {start} and ACC is {_percent(before['acc'])}. {what}")
    if len(ranked) > 1:
        worst = ranked[-1]
        parts.append(
            f"{worst['defense']} is the {'worse' if len(ranked) == 2 else 'worst'} one: "
            f"ASR is {_percent(worst['asr'])} "
            f"and {_cost(worst)} (outcome “{verdict(worst)}”)."
        )
    if dead := [
        f"{row['defense']} ({row['status']})" for row in group if row["failed"] and not row["n"]
    ]:
        parts.append(", ".join(dead) + " gave no result.")
    return " ".join(parts)


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Sort summary rows of defences by DER, best first.

    If a row has no DER, all are sorted by ACC − ASR, which weighs a point of either as DER does.
    """
    if any(row["der"] is None for row in rows):
        return sorted(rows, key=lambda row: row["acc"] - row["asr"], reverse=True)
    return sorted(rows, key=lambda row: row["der"], reverse=True)


def _cost(row: Row) -> str:
    if row["acc_change"] is None:
        return f"ACC is {_percent(row['acc'])}"
    points = f"{abs(100 * row['acc_change']):.1f}"
    return (
        "ACC stays the same"
        if points == "0.0"
        else f"ACC {'falls' if row['acc_change'] < 0 else 'rises'} by {points} points"
    )


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def points(value: float | None, sign: bool = False, digits: int = 2) -> str:
    """Return a fraction as text in percent; with `sign` as a change, with + or −.

    The minus is the character −, and a change that rounds to zero has no sign. Without a value
    return –, or "" for a change.
    """
    if value is None:
        return "" if sign else "–"
    text = f"{100 * value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")  # no "−0.00"


def spread(row: Row, rate: str, digits: int = 2) -> str:
    """Return a rate of a summary row as text in percent, ± its standard deviation over seeds."""
    deviation = row[f"{rate}_std"]
    beside = "" if deviation is None else f" ± {points(deviation, digits=digits)}"
    return points(row[rate], digits=digits) + beside


def detections(rows: Sequence[Row]) -> list[Row]:
    """Return rows of detections.csv, samples.csv or inputs.csv with the outcome as added `text`."""
    return [row | {"text": _detection_text(row)} for row in rows]


def _detection_text(row: Row) -> str:
    if "auroc" in row:
        return _scores_text(row)
    flagged = f"flags {row['flagged_classes']}" if row["flagged"] else "flags no class"
    limit = f"statistic {row['statistic']:.2f}, threshold {row['threshold']:.2f}"
    where = f"{row['attack']}, seed {row['seed']}: {row['detection']}"
    return f"{where} {flagged} ({limit}). {_detection_verdict(row)}"


def _scores_text(row: Row) -> str:
    """Return a row of samples.csv or inputs.csv as text: AUROC, flags, precision and recall."""
    where = f"{row['attack']}, seed {row['seed']}: {row['detection']}"
    if row["auroc"] is None:
        return f"{where} flags {row['flagged']} samples. No sample is poisoned or triggered."
    precision = "–" if row["precision"] is None else f"{100 * row['precision']:.1f} %"
    recall = "–" if row["recall"] is None else f"{100 * row['recall']:.1f} %"
    return (
        f"{where} has an AUROC of {row['auroc']:.3f}. It flags {row['flagged']} samples "
        f"(precision {precision}, recall {recall})."
    )


def _detection_verdict(row: Row) -> str:
    if row["right"] is None:
        return "It is not known whether this is right."
    if not row["n_targets"]:
        return f"There is no backdoor, so this is {'a false alarm' if row['flagged'] else 'right'}."
    words = f"It finds {row['n_found']} of {row['n_targets']} targets ({row['targets']})"
    if row["n_found"] == row["n_targets"]:
        words = f"It finds {'the target' if row['n_targets'] == 1 else 'every target'}"
    elif row["n_targets"] == 1:
        words = f"It misses the target ({row['targets']})"
    also = ", and it also raises false alarms" if row["n_flagged"] > row["n_found"] else ""
    return f"{words}{also}."


def mean_spread(values: Sequence[float | None], factor: float = 1, digits: int = 2) -> str:
    """Return the mean of numbers as text, ± their standard deviation; None is left out, – for none.

    It is the sample standard deviation. `factor` multiplies all values.
    """
    known = [factor * value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{deviation}"


def group_of(row: Row) -> tuple[str, str, str]:
    """Return the data set, model and attack of a results row, which all rows of a table share."""
    return row["dataset"], row["model"], row["attack"]
