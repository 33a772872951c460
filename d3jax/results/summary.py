"""What the rows of a study say: summaries over seeds, the outcome in words, detections. No jax."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.records import Row

RATES = ("acc", "asr", "ra", "der")
KEEPS = 0.5  # an ASR from here on: the backdoor works
GONE = 0.1  # an ASR below: what a model of ten classes reaches by chance
READ = 0.8  # RA from this share of ACC on: triggered images are read as they were
COSTLY = 0.1  # an ACC loss from here on is a price nobody pays unasked
NEAR = 0.1  # of the way from guessing to an ACC of 100 %: up to here a model has learned next to nothing


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One row for each (dataset, model, attack, defense), in order of first appearance, over its seeds.

    Returns:
        Rows of those four names and, for each of acc, asr, ra, der, the mean (`acc`), the sample standard deviation (`acc_std`,
        None for a single seed) and, but for der, the mean change against the backdoored model of the same seed and poison rate
        (`acc_change`). Numbers that are None or not finite are left out. `n` counts the seeds with an ACC, `failed` those with
        a `status` other than "ok", whose first is in `status`; `kept` counts the seeds whose ASR is 50 % or more, `worked` those
        whose backdoored model's is (None where no such model is known), and `asr_worst` is the highest; `misread`: whether RA is below `READ` of ACC on a seed; `seconds` is a mean, with
        what a search for a trigger took; `guesses`: whether ACC is near chance, for rows that know their number of `classes`; `untouched` counts the seeds where a defence found nothing to repair, `searched` says what
        it found, None for defences that do not search; `published` joins what the rows stand beside, None for nothing.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in _distinct(rows):
        groups.setdefault((row["dataset"], row["model"], row["attack"], row["defense"]), []).append(
            row
        )
    before = {_run(row): row for row in rows if row["defense"] == "none"}
    return [_summary(key, group, before) for key, group in groups.items()]


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows, a backdoored model that several seeds share counted once."""
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
    earlier = _finite(before.get(_run(row), {}).get("asr") for row in group)
    searched = [row for row in group if row.get("chosen")]
    beside = dict.fromkeys(
        str(row["published"]) for row in group if row.get("published") not in (None, "none")
    )
    chance = 1 / group[0]["classes"] if group[0].get("classes") else -1
    return summary | {
        "guesses": summary["acc"] is not None and summary["acc"] <= chance + NEAR * (1 - chance),
        "n": len(_finite(row["acc"] for row in group)),
        "failed": len(failures),
        "status": failures[0] if failures else "ok",
        "kept": sum(value >= KEEPS for value in rates),
        "worked": sum(value >= KEEPS for value in earlier) if earlier else None,
        "asr_worst": max(rates, default=None),
        "misread": any(ra < READ * acc - 1e-9 for ra, acc in reads if len(_finite((ra, acc))) == 2),
        "seconds": statistics.fmean(seconds) if seconds else None,
        "published": " / ".join(beside) or None,
        "untouched": sum(row["target"] == -1 for row in searched),
        "searched": "; ".join(dict.fromkeys(_searched(row) for row in searched)) or None,
    }


def _searched(row: Row) -> str:
    """What a defence that searched for a trigger found out first."""
    if row["target"] == -1:
        return row["chosen"]
    turns = (
        ""
        if row["trigger_success"] is None
        else f", trigger turns {100 * row['trigger_success']:.0f} %"
    )
    return f"class {row['target']} {row['chosen']}{turns}"


def _finite(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def verdict(row: Row) -> str:
    """What became of the backdoor, in words, for one row of `summarise`; "" where ASR is undefined."""
    what = "not finished" if row["status"].startswith("not finished") else "failed"
    failed = (
        f"{what} on {row['failed']} of {row['failed'] + row['n']} seeds" if row["failed"] else ""
    )
    if not row["n"]:
        return row["status"] if row["failed"] else ""
    guesses = "ACC near chance" if row["guesses"] else ""
    if row["asr"] is None:
        return ", ".join(filter(None, (guesses, failed)))
    if row["untouched"] == row["n"]:
        return ", ".join(filter(None, ("not repaired: nothing flagged", failed)))
    kept = "" if row["kept"] == row["n"] else f" on {row['kept']} of {row['n']} seeds"
    if row["guesses"] and row["defense"] != "none":
        return ", ".join(filter(None, ("model lost", failed)))
    if row["defense"] == "none":
        words = f"backdoor works{kept}" if row["kept"] else "backdoor does not work"
    elif row["worked"] == 0:
        words = f"makes a backdoor{kept}" if row["kept"] else "no backdoor to remove"
    elif row["kept"]:
        words = f"kept{kept}"
    elif row["asr_worst"] < GONE:
        words = "disabled: still misread" if row["misread"] else "removed"
    else:
        words = (
            "not weakened"
            if row["asr_change"] is not None and row["asr_change"] >= 0
            else "weakened"
        )
    if (
        row["acc_change"] is not None and round(row["acc_change"], 6) <= -COSTLY
    ):  # 0.8 − 0.9 is a hair above −0.1
        words += ", heavy ACC cost"
    return ", ".join(filter(None, (words, guesses, failed)))


def headline(group: Sequence[Row]) -> str:
    """One sentence on one attack from its rows of `summarise`: what the best defence reached, what the worst left behind."""
    before = next((row for row in group if row["defense"] == "none"), None)
    tried = [row for row in group if row["defense"] != "none"]
    ranked = _ranked([row for row in tried if row["asr"] is not None and row["acc"] is not None])
    if before and before["n"] and before["asr"] is None:
        return f"ACC {_percent(before['acc'])}; without a trigger there is no ASR."
    start = f"ASR {_percent(before['asr'])}" if before and before["n"] else ""
    parts = (
        [f"the model has hardly learned anything (ACC {_percent(before['acc'])})"]
        if before and before["guesses"]
        else []
    )
    if before and start and not before["kept"]:
        parts.append(
            f"the backdoor does not work even before a defence ({start}), so there is little to remove"
        )
    if ranked:
        best, lost = ranked[0], all(row["kept"] for row in ranked)
        lead = "no defence removes the backdoor; the best: " if lost and len(ranked) > 1 else ""
        change = f"{start} → {_percent(best['asr'])}" if start else f"ASR {_percent(best['asr'])}"
        words = verdict(best)
        parts.append(
            f"{lead}{change} under {best['defense']} {_cost(best)}"
            + ("" if words == "removed" else f" ({words})")
        )
    elif before and start:
        what = "no defence gave numbers" if tried else "no defence was run"
        parts.append(f"{start} at ACC {_percent(before['acc'])}, {what}")
    if len(ranked) > 1:
        worst = ranked[-1]
        parts.append(
            f"worst of {len(ranked)}: {worst['defense']}, {verdict(worst)}, ASR {_percent(worst['asr'])} {_cost(worst)}"
        )
    if dead := [
        f"{row['defense']} ({row['status']})" for row in group if row["failed"] and not row["n"]
    ]:
        parts.append("without result: " + ", ".join(dead))
    return "; ".join(parts) + "." if parts else ""


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first by DER; where one has none, all by ACC − ASR, which weighs a point of either as DER does."""
    if any(row["der"] is None for row in rows):
        return sorted(rows, key=lambda row: row["acc"] - row["asr"], reverse=True)
    return sorted(rows, key=lambda row: row["der"], reverse=True)


def _cost(row: Row) -> str:
    if row["acc_change"] is None:
        return f"at ACC {_percent(row['acc'])}"
    points = f"{abs(100 * row['acc_change']):.1f}"
    return (
        "at no ACC cost"
        if points == "0.0"
        else f"at an ACC {'cost' if row['acc_change'] < 0 else 'gain'} of {points} points"
    )


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def points(value: float | None, sign: bool = False, digits: int = 2) -> str:
    """In percent; with `sign` as a change, whose minus is a real one."""
    if value is None:
        return "" if sign else "–"
    text = f"{100 * value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")  # no "−0.00"


def spread(row: Row, rate: str, digits: int = 2) -> str:
    """A fraction in percent, ± the sample standard deviation where there are several seeds."""
    deviation = row[f"{rate}_std"]
    beside = "" if deviation is None else f" ± {points(deviation, digits=digits)}"
    return points(row[rate], digits=digits) + beside


def detections(rows: Sequence[Row]) -> list[Row]:
    """Return rows of detections.csv, samples.csv or inputs.csv with a `text` that says what came of it."""
    return [row | {"text": _detection_text(row)} for row in rows]


def _detection_text(row: Row) -> str:
    if "auroc" in row:
        return _scores_text(row)
    flagged = f"flags {row['flagged_classes']}" if row["flagged"] else "flags nothing"
    limit = f"statistic {row['statistic']:.2f}, threshold {row['threshold']:.2f}"
    where = f"{row['attack']}, seed {row['seed']}, {row['detection']}"
    return f"{where}: {flagged} ({limit}); {_detection_verdict(row)}"


def _scores_text(row: Row) -> str:
    """Return a row of samples.csv or inputs.csv in words."""
    where = f"{row['attack']}, seed {row['seed']}, {row['detection']}"
    if row["auroc"] is None:
        return f"{where}: flags {row['flagged']}; nothing is poisoned or triggered"
    precision = "–" if row["precision"] is None else f"{100 * row['precision']:.1f} %"
    recall = "–" if row["recall"] is None else f"{100 * row['recall']:.1f} %"
    return f"{where}: AUROC {row['auroc']:.3f}; flags {row['flagged']}, precision {precision}, recall {recall}"


def _detection_verdict(row: Row) -> str:
    if row["right"] is None:
        return "whether rightly is not known"
    if not row["n_targets"]:
        return "no backdoor: false alarm" if row["flagged"] else "no backdoor: right"
    words = f"finds {row['n_found']} of {row['n_targets']} targets ({row['targets']})"
    if row["n_found"] == row["n_targets"]:
        words = "right"
    elif row["n_targets"] == 1:
        words = f"misses the target, {row['targets']}"
    return f"{words}, and false alarms" if row["n_flagged"] > row["n_found"] else words


def mean_spread(values: Sequence[float | None], factor: float = 1, digits: int = 2) -> str:
    """Return the mean of the known values, ± their sample standard deviation; – for none."""
    known = [factor * value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{deviation}"


def group_of(row: Row) -> tuple[str, str, str]:
    """What rows of one table share: data set, model, attack."""
    return row["dataset"], row["model"], row["attack"]
