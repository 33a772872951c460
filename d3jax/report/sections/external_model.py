"""A model from elsewhere in the report: what can be said of it without knowing a trigger, and what cannot. No jax."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ...results.artifacts import Row
from ...results.summary import detections, points
from ..html import escape, table

MISSED = (
    "Whether it is backdoored, where nothing is flagged: the search is for a small trigger of one class, and is known to miss "
    "triggers that cover the whole image, that differ from image to image, or that work on some classes only."
)
ACCUSED = "Whether it is backdoored, where a class is flagged: classes of clean models are flagged too, above all such as few pixels decide."
UNSEARCHED = (
    "Whether it is backdoored: no detection looked for a trigger (detections: [inversion])."
)
RATES = "ASR, RA and DER, before or after a repair: they are about the attacker's trigger, which nobody has shown to this study."
REPAIRED = (
    "That a repair removed a backdoor. An inverted trigger that turns nothing any more is a good sign from a repair that never "
    "saw it (fine-tuning, D3); MCL and NC were trained against one."
)


def show_suspect(
    read: str, rows: Sequence[Row], looked: Sequence[Row], turned: Sequence[Row]
) -> str:
    """The section of a model from elsewhere of which no trigger is known: how it was `read`, and its rows of results.csv, detections.csv
    and triggers.csv."""
    repaired = any(row["defense"] != "none" for row in rows)
    cannot = [
        *((MISSED, ACCUSED) if looked else (UNSEARCHED,)),
        RATES,
        *((REPAIRED,) if repaired else ()),
    ]
    return (
        f"<section><h2>A model from elsewhere</h2><p>{escape(read)}</p><h3>What can be said</h3>"
        f"<ul class=lead>{''.join(f'<li>{escape(text)}</li>' for text in _said(rows, looked))}</ul>{show_turned(turned)}<h3>What cannot</h3>"
        f"<ul class=lead>{''.join(f'<li>{escape(text)}</li>' for text in cannot)}</ul></section>"
    )


def _said(rows: Sequence[Row], looked: Sequence[Row]) -> list[str]:
    acc = {
        name: [row["acc"] for row in rows if row["defense"] == name and row["acc"] is not None]
        for name in dict.fromkeys(row["defense"] for row in rows)
    }
    said = (
        [f"Its accuracy on the clean test images is {points(acc['none'][0])} %."]
        if acc.get("none")
        else []
    )
    after = [
        f"{points(statistics.fmean(values))} % under {name}"
        for name, values in acc.items()
        if values and name != "none"
    ]
    said += [f"After repairs it is {', '.join(after)}."] if after else []
    return said + flagged(looked)


def flagged(looked: Sequence[Row]) -> list[str]:
    """A sentence on every detection among rows of detections.csv: which classes it flags."""
    return [
        f"{one['detection']} (seed {one['seed']}) flags {', '.join(one['flagged']) or 'no class'}; the smallest trigger has an anomaly index "
        f"of {one['anomaly_index']:.2f}, where more than 2 is taken for an outlier."
        for one in detections(looked)
    ]


def show_turned(rows: Sequence[Row]) -> str:
    """For one attack: what the inverted trigger of every detection does to every model; `rows` are those of triggers.csv."""
    parts = []
    for detection in dict.fromkeys(row["detection"] for row in rows):
        mine = [row for row in rows if row["detection"] == detection]
        seeds = {row["seed"]: row for row in mine}
        head = ["<th scope=col>Model</th>"]
        for seed, row in seeds.items():
            how = "flagged" if row["flagged"] else "smallest, not flagged"
            head.append(
                f"<th scope=col class=n>To {escape(row['class'])}<small>seed {seed}; {how}; index {row['index']:.2f}</small></th>"
            )
        body = []
        for name in dict.fromkeys(row["defense"] for row in mine):
            cells = {row["seed"]: points(row["turned"]) for row in mine if row["defense"] == name}
            numbers = "".join(f"<td class=n>{cells.get(seed, '–')}</td>" for seed in seeds)
            body.append(f"<tr><th scope=row>{escape(name)}</th>{numbers}</tr>")
        note = f"{detection}: share (%) of the test images of other classes that its trigger, found on the model before any repair, turns into its class."
        parts.append(
            f"<figure>{table(head, [body])}<figcaption>{escape(note)}</figcaption></figure>"
        )
    return "".join(parts)
