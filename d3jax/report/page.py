"""report.html: one page, needing no other file, that shows what a study found and explains itself. No jax."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..results.artifacts import Row
from ..results.summary import (
    COSTLY,
    GONE,
    KEEPS,
    RATES,
    detections,
    group_of,
    headline,
    points,
    spread,
    summarise,
    verdict,
)
from ..runtime.files import write_text
from .html import CSS, PAGE, Looks, drawn, escape, mark, swatch, table
from .plots import curves as figures
from .sections.evolution import Lineages, headlines, show_evolutions
from .sections.external_model import flagged, show_suspect, show_turned
from .sections.loss_landscape import Lines, show_paths
from .sections.samples import Samples, show_attack
from .sections.training_time import Filter, show_filters

Groups = dict[tuple[str, str, str], list[Row]]
"""Rows of `summarise` by (dataset, model, attack)."""


class Extras(NamedTuple):
    """What a page shows beside the rows and samples: `looked`, the rows of detections.csv; `lineages`, which of the rows are evolutions,
    and all of them; `filters`, what training-time defences found, and `filtered`, the rows of filters.csv; `lines` between models;
    `turned`, the rows of triggers.csv; of a model from elsewhere how it was `read`, and the attacks whose trigger is `unknown`."""

    looked: Sequence[Row] = ()
    lineages: Lineages = Lineages()
    filters: Sequence[Filter] = ()
    filtered: Sequence[Row] = ()
    lines: Sequence[Lines] = ()
    turned: Sequence[Row] = ()
    read: str = ""
    unknown: Sequence[str] = ()


NOTHING = Extras()


def write_report(
    workdir: str | Path, rows: Sequence[Row], samples: Sequence[Samples], title: str, extras: Extras = NOTHING
) -> Path:  # fmt: skip
    """Writes `report.html` into `workdir`, one page that needs no other file, and its pictures also as `figures/*.png`.

    Reads `metrics.jsonl` (curves), `environment.json` and `config.yaml` in `workdir`; what is not there is left out of the page, and a
    part that cannot be drawn says so in its place.
    """
    folder, lineages = Path(workdir), extras.lineages
    for picture in (folder / "figures").glob("*.png"):
        picture.unlink(missing_ok=True)  # it may be an earlier study's
    metrics = every = figures.read_metrics(folder / "metrics.jsonl")
    if rows:  # a run folder may hold stages of an earlier config
        cells = {(row["attack"], row["defense"]) for row in rows} | {
            (row["attack"], "train") for row in rows
        }
        metrics = {
            attack: {
                run: lines for run, lines in runs.items() if (attack, run[0].split("/")[0]) in cells
            }
            for attack, runs in metrics.items()
        }
    looks = figures.palette(
        [row["defense"] for row in rows]
        + [name for sample in samples for name in sample.predictions]
    )
    attacks = list(
        dict.fromkeys(
            [*(row["attack"] for row in rows), *(sample.attack for sample in samples), *metrics]
        )
    )
    ended = [row for row in rows if row["defense"] in lineages.shown]
    rows = [row for row in rows if row["defense"] not in lineages.shown]
    groups: Groups = {}
    for row in summarise(rows):
        groups.setdefault(group_of(row), []).append(row)
    found = {attack: flagged(_of(attack, extras.looked)) for attack in extras.unknown}
    links, details = [], []
    for attack, stem in zip(attacks, _stems(attacks), strict=True):
        mine = [sample for sample in samples if sample.attack == attack]
        failed = [row for row in ended if row["attack"] == attack and row["status"] != "ok"]
        runs = {
            run: lines
            for run, lines in metrics.get(attack, {}).items()
            if run[0].split("/")[0] not in lineages.shown
        }
        filters = [one for one in extras.filters if one.attack == attack]
        filters = [one for one in filters if one.seed == filters[0].seed]
        named, reached, turned = (
            _of(attack, table) for table in (extras.filtered, rows, extras.turned)
        )
        paths = [one for one in extras.lines if one.attack == attack]
        where = folder / "figures" / stem
        sections = (
            partial(show_evolutions, where, attack, lineages, failed, looks),
            partial(show_filters, where, filters, named, reached, every.get(attack, {}), looks),
            *(partial(show_paths, where, one, looks) for one in paths),
            partial(show_turned, [] if attack in extras.unknown else turned),
            partial(show_attack, where, attack, mine, runs, looks),
        )
        if text := "".join(drawn(section) for section in sections):
            details.append(
                f'<section id="{stem}"><h2>{escape(attack)} in detail</h2>{text}</section>'
            )
            links.append(f'<a href="#{stem}">{escape(attack)}</a>')
    parts = [
        f"<header><h1>{escape(title)}</h1><p class=note>{_subtitle(rows, lineages)}</p></header>",
        _headlines(
            groups,
            {attack: [text] for attack, text in headlines(lineages.compared).items()} | found,
        ),
        f"<nav aria-label='Attacks'>In detail: {' '.join(links)}</nav>" if len(links) > 1 else "",
        _glance(groups, looks),
        *(
            show_suspect(
                extras.read, *(_of(attack, table) for table in (rows, extras.looked, extras.turned))
            )
            for attack in extras.unknown
        ),
        _study_table(groups, rows, looks),
        _detections(extras.looked),
        _glossary(groups),
        *details,
        _environment(folder),
    ]
    write_text(
        folder / "report.html",
        PAGE.format(title=escape(title), css=CSS, body="\n".join(filter(None, parts))),
    )
    return folder / "report.html"


def _of(attack: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["attack"] == attack]


def _stems(names: Sequence[str]) -> list[str]:
    """File names for attacks: theirs, made harmless, with a number where two become the same."""
    stems: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "attack"
        stems.append(stem if stem not in stems else f"{stem}-{len(stems)}")
    return stems


def _subtitle(rows: Sequence[Row], lineages: Lineages) -> str:
    parts = [
        ", ".join(dict.fromkeys(escape(row[name]) for row in rows)) for name in ("dataset", "model")
    ]
    for name, word in (("attack", "attack"), ("defense", "defence"), ("seed", "seed")):
        count = len({row[name] for row in rows} - {"none"})
        parts.append(f"{count} {word}{'' if count == 1 else 's'}" if count else "")
    if count := len(lineages.shown):
        parts.append(f"{count} evolution{'' if count == 1 else 's'}")
    return " · ".join(filter(None, parts))


def _label(group: tuple[str, str, str], groups: Groups) -> str:
    """The attack, with its dataset and model where the study has several."""
    extra = [group[i] for i in (0, 1) if len({other[i] for other in groups}) > 1]
    return escape(group[2]) + (f" <small>{escape(', '.join(extra))}</small>" if extra else "")


def _headlines(groups: Groups, more: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"<li><b>{_label(key, groups)}</b>: {escape(text)}</li>"
        for key, group in groups.items()
        for text in (headline(group), *more.get(key[2], ()))
        if text
    ]
    means = any(row["n"] > 1 for group in groups.values() for row in group)
    ranked = any(
        sum(row["defense"] != "none" and row["asr"] is not None for row in group) > 1
        for group in groups.values()
    )
    notes = (["Means over the seeds."] if means else []) + (
        ["Best and worst by DER."] if ranked else []
    )
    note = f"<p class=note>{' '.join(notes)}</p>" if notes else ""
    return (
        f"<section><h2>What came out</h2><ul class=lead>{''.join(lines)}</ul>{note}</section>"
        if lines
        else ""
    )


def _glance(groups: Groups, looks: Looks) -> str:
    """ASR of every defence under every attack, where there are several of both."""
    defenses = list(dict.fromkeys(row["defense"] for group in groups.values() for row in group))
    if len(groups) < 2 or len(defenses) < 3:
        return ""
    head = ["<th></th>", *(f"<th scope=col class=n>{_label(key, groups)}</th>" for key in groups)]
    body = []
    for defense in defenses:
        cells = [
            next((row for row in group if row["defense"] == defense), None)
            for group in groups.values()
        ]
        body.append(f"<tr>{swatch(defense, looks)}{''.join(map(_glance_cell, cells))}</tr>")
    note = "ASR in percent (lower is better), beneath it ACC and what the defence changed of it in points."
    signs = "✓ removed, ◐ weakened, ✗ keeps the backdoor on some seed or does not weaken it, • had none to remove, ! failed or a heavy ACC cost."
    return f"<section><h2>At a glance</h2>{table(head, [body], 'glance')}<p class=note>{note} {signs}</p></section>"


def _glance_cell(row: Row | None) -> str:
    if row is None or row["asr"] is None:
        return f"<td class=n>{mark('failed') if row and row['failed'] else '–'}</td>"
    words = "" if row["defense"] == "none" else verdict(row)
    sign = mark(words, short=True) + (mark("!", short=True) if "," in words else "")
    change = f" ({points(row['acc_change'], True, 1)})" if row["acc_change"] is not None else ""
    small = f"<small>{points(row['acc'], digits=1)}{change}</small>"
    return f'<td class="n bar asr" style="--v:{100 * row["asr"]:.1f}">{sign} {points(row["asr"], digits=1)}{small}</td>'


def _study_table(groups: Groups, rows: Sequence[Row], looks: Looks) -> str:
    if not groups:
        return ""
    published = any(row["published"] for group in groups.values() for row in group)
    rates = _rates(groups)
    head = ["<th scope=col>Defence</th><th scope=col>Outcome</th>"]
    aims = {rate: "lower" if rate == "asr" else "higher" for rate in rates}
    head += [
        f"<th scope=col class=n>{rate.upper()}<small>{aim} is better</small></th>"
        for rate, aim in aims.items()
    ]
    head += [
        "<th scope=col class=n>Time<small>seconds</small></th>",
        "<th scope=col>Published</th>" if published else "",
    ]
    bodies = []
    for key, group in groups.items():
        shares = dict.fromkeys(row["poison_rate"] for row in rows if group_of(row) == key)
        shown = ", ".join(f"{points(share, digits=2)} %" for share in shares if share is not None)
        poison = (
            f"poison rate {shown}" + (" together" if len(shares) > 1 else "")
            if shown
            else "trained elsewhere"
        )
        seeds = len({row["seed"] for row in rows if group_of(row) == key})
        about = f"{_label(key, groups)} <small>{poison} · {seeds} seed{'' if seeds == 1 else 's'}</small>"
        top = f"<tr class=group><th colspan={3 + len(rates) + published} scope=rowgroup><span>{about}</span></th></tr>"
        bodies.append([top, *(_study_row(row, rates, published, looks) for row in group)])
    note = "In percent."
    if len({row["seed"] for row in rows}) > 1:
        note += " ± is the sample standard deviation over seeds."
    note += " The small line is the change in points against none, the model that no defence has touched, of the same seed."
    if any(row.get("search_seconds") for row in rows):
        note += " The time of a repair includes its search for a trigger, which may be one that others share."
    return f"<section><h2>Before and after</h2>{table(head, bodies, 'study')}<p class=note>{note}</p></section>"


def _detections(looked: Sequence[Row]) -> str:
    """A line for every detection."""
    lines = "".join(f"<li>{escape(one['text'])}</li>" for one in detections(looked))
    note = "Flagged: a norm more than two deviations (1.4826 · MAD) below the median of all classes. Norms above it have an index too, and are never flagged."
    return (
        f"<section><h2>Detections</h2><ul class=lead>{lines}</ul><p class=note>{note}</p></section>"
        if lines
        else ""
    )


def _rates(groups: Groups) -> list[str]:
    """The rates that some row has; without a trigger that is ACC alone."""
    return [
        rate
        for rate in RATES
        if any(row[rate] is not None for group in groups.values() for row in group)
    ] or ["acc"]


def _study_row(row: Row, rates: Sequence[str], published: bool, looks: Looks) -> str:
    cells = []
    for rate in rates:
        text = points(row[f"{rate}_change"], sign=True)
        kind = (
            "same"
            if text in ("", "0.00")
            else "better"
            if (row[f"{rate}_change"] < 0) == (rate == "asr")
            else "worse"
        )
        bar = rate in ("acc", "asr") and row[rate] is not None
        style = f'class="n bar {rate}" style="--v:{100 * row[rate]:.1f}"' if bar else "class=n"
        cells.append(
            f"<td {style}>{escape(spread(row, rate))}<small class={kind}>{text}</small></td>"
        )
    seconds = row["seconds"]
    time = (
        "–"
        if seconds is None
        else f"{seconds:,.{0 if seconds >= 10 else 1}f}".replace(",", "\u202f")
    )
    beside = f"<td class='text soft'>{escape(row['published'] or 'none')}</td>" if published else ""
    kind = "before" if row["defense"] == "none" else "after"
    found = f"<small>{escape(row['searched'])}</small>" if row["searched"] else ""
    first = f"{swatch(row['defense'], looks)}<td class=text>{mark(verdict(row))}{found}</td>"
    return f"<tr class={kind}>{first}{''.join(cells)}<td class=n>{time}</td>{beside}</tr>"


def _environment(folder: Path) -> str:
    parts = []
    try:
        known = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        body = [
            f"<tr><th scope=row>{escape(name)}</th><td class=text>{escape(value)}</td></tr>"
            for name, value in known.items()
        ]
        parts.append(table([], [body], "plain") if body else "")
    except (FileNotFoundError, json.JSONDecodeError):
        pass  # a run that was killed has none, or half of one
    if (config := folder / "config.yaml").exists():
        text = escape(config.read_text(encoding="utf-8", errors="replace"))
        parts.append(
            f"<details><summary>Configuration</summary><pre tabindex=0>{text}</pre></details>"
        )
    return f"<section><h2>How it was made</h2>{''.join(parts)}</section>" if any(parts) else ""


def _glossary(groups: Groups) -> str:
    if not groups:
        return ""
    shown = [*_rates(groups), *(["outcome"] if "asr" in _rates(groups) else [])]
    return f"<section><h2>How to read it</h2><dl>{''.join(GLOSSARY[name] for name in shown)}</dl></section>"


GLOSSARY = {
    "acc": "<dt>ACC</dt><dd>Accuracy: the share of clean test images classified as their true class.</dd>",
    "asr": """<dt>ASR</dt><dd>Attack success rate: of the triggered test images whose true class is not the target, the share classified
as the target.</dd>""",
    "ra": """<dt>RA</dt><dd>Robust accuracy: of the same images, the share classified as their true class. A repair that moves triggered
images from the target to other wrong classes has a low ASR and a low RA.</dd>""",
    "der": """<dt>DER</dt><dd>Defence effectiveness rating: <span class=formula>(max(0, ΔASR) − max(0, ΔACC) + 1) / 2</span>, with ΔASR and
ΔACC the drops from before to after. 100 % is the whole backdoor gone for nothing, 50 % is no effect.</dd>""",
    "outcome": f"""<dt>Outcome</dt><dd><b>removed</b>: ASR below {100 * GONE:.0f} % on every seed. <b>keeps the backdoor</b>: ASR of
{100 * KEEPS:.0f} % or more. <b>weakened</b>: between them. <b>heavy ACC cost</b>: {100 * COSTLY:.0f} points of ACC or more. <b>ACC near
chance</b>: at most a tenth of the way from guessing to 100 %.</dd>""",
}
