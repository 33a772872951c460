"""report.html: one page, needing no other file, that shows what a study found and explains itself. No jax."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import figures
from .evolution_page import Lineages, headlines, show_evolutions
from .filter_page import Filter, show_filters
from .findings import Features, Inverted, show_features, show_inversions
from .markup import CSS, PAGE, Looks, escape, figure, image, mark, swatch, table
from .path_page import Lines, show_paths
from .report import (
    COSTLY,
    GONE,
    KEEPS,
    RATES,
    Row,
    detections,
    group_of,
    headline,
    points,
    spread,
    summarise,
    verdict,
    write_whole,
)

Groups = dict[tuple[str, str, str], list[Row]]
"""Rows of `summarise` by (dataset, model, attack)."""


class Samples(NamedTuple):
    """Test images of one attack and seed with what every model said of them, for the page.

    `clean` and `triggered` are uint8 [n, H, W, C], `labels` int [n] the true classes. `predictions[defense]` holds the classes
    [n] predicted for the clean and for the triggered images, `per_class[defense]` the fractions [K] "acc" and "asr" by true
    class, nan where undefined; "none" is the backdoored model in both. `targets` int [n] is the class the attacker wants for
    each image; without it the one class that has no ASR under "none" is taken for the target of all. `likeness` has the trigger's
    `psnr` (dB), `ssim` and `largest` change (8-bit levels). `inverted` holds what detections found, `features` those of every model.
    """

    attack: str
    seed: int
    clean: np.ndarray
    triggered: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    predictions: dict[str, tuple[np.ndarray, np.ndarray]]
    per_class: dict[str, dict[str, np.ndarray]]
    targets: np.ndarray | None = None
    likeness: dict[str, float] | None = None
    inverted: Sequence[Inverted] = ()
    features: Mapping[str, Features] = {}


def write_report(
    workdir: str | Path,
    rows: Sequence[Row],
    samples: Sequence[Samples],
    title: str,
    looked: Sequence[Row] = (),
    lineages: Lineages | None = None,
    filters: Sequence[Filter] = (),
    filtered: Sequence[Row] = (),
    lines: Sequence[Lines] = (),
) -> Path:
    """Writes `report.html` into `workdir`, one page that needs no other file, and its pictures also as `figures/*.png`.

    `looked` are the rows of detections.csv; `lineages` says which of the rows are evolutions, and all of them; `filters` are
    what training-time defences found, `filtered` the rows of filters.csv, `lines` what lies between models. Reads `metrics.jsonl`
    (curves), `environment.json` and `config.yaml` in `workdir`; what is not there is left out of the page.
    """
    folder, lineages = Path(workdir), lineages or Lineages()
    metrics = every = figures.read_metrics(folder / "metrics.jsonl")
    if rows:  # a run folder may hold stages of an earlier config
        cells = {(row["attack"], row["defense"]) for row in rows} | {(row["attack"], "train") for row in rows}
        metrics = {
            attack: {run: lines for run, lines in runs.items() if (attack, run[0].split("/")[0]) in cells}
            for attack, runs in metrics.items()
        }
    looks = figures.palette([row["defense"] for row in rows] + [name for sample in samples for name in sample.predictions])
    attacks = list(dict.fromkeys([*(row["attack"] for row in rows), *(sample.attack for sample in samples), *metrics]))
    ended = [row for row in rows if row["defense"] in lineages.shown]
    rows = [row for row in rows if row["defense"] not in lineages.shown]
    groups: Groups = {}
    for row in summarise(rows):
        groups.setdefault(group_of(row), []).append(row)
    links, details = [], []
    for attack, stem in zip(attacks, _stems(attacks), strict=True):
        mine = [sample for sample in samples if sample.attack == attack]
        failed = [row for row in ended if row["attack"] == attack and row["status"] != "ok"]
        evolutions = show_evolutions(folder / "figures" / stem, attack, lineages, failed, looks)
        runs = {run: lines for run, lines in metrics.get(attack, {}).items() if run[0].split("/")[0] not in lineages.shown}
        found = [one for one in filters if one.attack == attack and one.seed == filters[0].seed]
        named = [row for row in filtered if row["attack"] == attack]
        evolutions += show_filters(folder / "figures" / stem, found, named, every.get(attack, {}))
        evolutions += "".join(show_paths(folder / "figures" / stem, one, looks) for one in lines if one.attack == attack)
        if text := evolutions + _attack(folder / "figures" / stem, attack, mine, runs, looks):
            details.append(f'<section id="{stem}"><h2>{escape(attack)} in detail</h2>{text}</section>')
            links.append(f'<a href="#{stem}">{escape(attack)}</a>')
    parts = [
        f"<header><h1>{escape(title)}</h1><p class=note>{_subtitle(rows, lineages)}</p></header>",
        _headlines(groups, headlines(lineages.compared)),
        f"<nav aria-label='Attacks'>In detail: {' '.join(links)}</nav>" if len(links) > 1 else "",
        _glance(groups, looks),
        _study_table(groups, rows, looks),
        _detections(looked),
        GLOSSARY if rows else "",
        *details,
        _environment(folder),
    ]
    write_whole(folder / "report.html", PAGE.format(title=escape(title), css=CSS, body="\n".join(filter(None, parts))))
    return folder / "report.html"


def _stems(names: Sequence[str]) -> list[str]:
    """File names for attacks: theirs, made harmless, with a number where two become the same."""
    stems: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "attack"
        stems.append(stem if stem not in stems else f"{stem}-{len(stems)}")
    return stems


def _subtitle(rows: Sequence[Row], lineages: Lineages) -> str:
    parts = [", ".join(dict.fromkeys(escape(row[name]) for row in rows)) for name in ("dataset", "model")]
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


def _headlines(groups: Groups, survivals: Mapping[str, str]) -> str:
    lines = [
        f"<li><b>{_label(key, groups)}</b>: {escape(text)}</li>"
        for key, group in groups.items()
        for text in (headline(group), survivals.get(key[2]))
        if text
    ]
    means = any(row["n"] > 1 for group in groups.values() for row in group)
    ranked = any(sum(row["defense"] != "none" for row in group) > 1 for group in groups.values())
    notes = (["Means over the seeds."] if means else []) + (["Best and worst by DER."] if ranked else [])
    note = f"<p class=note>{' '.join(notes)}</p>" if notes else ""
    return f"<section><h2>What came out</h2><ul class=lead>{''.join(lines)}</ul>{note}</section>" if lines else ""


def _glance(groups: Groups, looks: Looks) -> str:
    """ASR of every defence under every attack, where there are several of both."""
    defenses = list(dict.fromkeys(row["defense"] for group in groups.values() for row in group))
    if len(groups) < 2 or len(defenses) < 3:
        return ""
    head = ["<th></th>", *(f"<th scope=col class=n>{_label(key, groups)}</th>" for key in groups)]
    body = []
    for defense in defenses:
        cells = [next((row for row in group if row["defense"] == defense), None) for group in groups.values()]
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
    aims = (("ACC", "higher"), ("ASR", "lower"), ("RA", "higher"), ("DER", "higher"))
    head = ["<th scope=col>Defence</th><th scope=col>Outcome</th>"]
    head += [f"<th scope=col class=n>{name}<small>{aim} is better</small></th>" for name, aim in aims]
    head += ["<th scope=col class=n>Time<small>seconds</small></th>", "<th scope=col>Published</th>" if published else ""]
    bodies = []
    for key, group in groups.items():
        rates = dict.fromkeys(f"{points(row['poison_rate'], digits=2)} %" for row in rows if group_of(row) == key)
        poison = f"poison rate {', '.join(rates)}" + (" together" if len(rates) > 1 else "")
        seeds = len({row["seed"] for row in rows if group_of(row) == key})
        about = f"{_label(key, groups)} <small>{poison} · {seeds} seed{'' if seeds == 1 else 's'}</small>"
        top = f"<tr class=group><th colspan={7 + published} scope=rowgroup><span>{about}</span></th></tr>"
        bodies.append([top, *(_study_row(row, published, looks) for row in group)])
    spread = " ± is the sample standard deviation over seeds." if len({row["seed"] for row in rows}) > 1 else ""
    note = f"In percent.{spread} The small line is the change in points against the backdoored model (none) of the same seed."
    return f"<section><h2>Before and after</h2>{table(head, bodies, 'study')}<p class=note>{note}</p></section>"


def _detections(looked: Sequence[Row]) -> str:
    """A line for every detection."""
    lines = "".join(f"<li>{escape(one['text'])}</li>" for one in detections(looked))
    note = "Flagged: a norm more than two deviations (1.4826 · MAD) below the median of all classes."
    return f"<section><h2>Detections</h2><ul class=lead>{lines}</ul><p class=note>{note}</p></section>" if lines else ""


def _study_row(row: Row, published: bool, looks: Looks) -> str:
    cells = []
    for rate in RATES:
        text = points(row[f"{rate}_change"], sign=True)
        kind = "same" if text in ("", "0.00") else "better" if (row[f"{rate}_change"] < 0) == (rate == "asr") else "worse"
        bar = rate in ("acc", "asr") and row[rate] is not None
        style = f'class="n bar {rate}" style="--v:{100 * row[rate]:.1f}"' if bar else "class=n"
        cells.append(f"<td {style}>{escape(spread(row, rate))}<small class={kind}>{text}</small></td>")
    seconds = row["seconds"]
    time = "–" if seconds is None else f"{seconds:,.{0 if seconds >= 10 else 1}f}".replace(",", "\u202f")
    beside = f"<td class='text soft'>{escape(row['published'] or 'none')}</td>" if published else ""
    kind = "before" if row["defense"] == "none" else "after"
    found = f"<small>{escape(row['searched'])}</small>" if row["searched"] else ""
    first = f"{swatch(row['defense'], looks)}<td class=text>{mark(verdict(row))}{found}</td>"
    return f"<tr class={kind}>{first}{''.join(cells)}<td class=n>{time}</td>{beside}</tr>"


def _attack(stem: Path, attack: str, samples: Sequence[Samples], runs: figures.Runs, looks: Looks) -> str:
    """The samples, bars and curves of one attack; "" where there are none."""
    parts = [_sample_table(Path(f"{stem}-samples.png"), samples[0], looks)] if samples and len(samples[0].labels) else []
    if samples:
        over = f"mean over {len(samples)} seeds" if len(samples) > 1 else f"seed {samples[0].seed}"
        path = figures.save_classes(Path(f"{stem}-classes.png"), samples[0].classes, _mean_per_class(samples), looks)
        text = f"ACC and ASR by true class ({over}). Wide grey bars: before; narrow bars: after. The target class has no ASR."
        parts.append(figure(path, f"ACC and ASR by true class under {attack}", text))
    if samples:
        parts.append(show_inversions(stem, samples[0].clean, samples[0].triggered, samples[0].inverted, samples[0].classes))
        parts.append(show_features(stem, samples[0].features, samples[0].classes, looks))
    seeds = len({seed for _, seed in runs})
    thin = f" One line for each of {seeds} seeds." if seeds > 1 else ""
    training = {run: records for run, records in runs.items() if run[0] == "train"}
    path = figures.save_curves(Path(f"{stem}-training.png"), training, figures.TRAINING, looks)
    parts.append(figure(path, f"Training curves under {attack}", f"Training the backdoored model.{thin}"))
    repair = {run: records for run, records in runs.items() if run[0] != "train"}
    path = figures.save_curves(Path(f"{stem}-defenses.png"), repair, figures.REPAIR, looks)
    text = f"The defences at work.{thin} Where a defence logs no clean loss, its training loss stands in."
    watched = any("watch_asr" in record or "watch_acc" in record for records in repair.values() for record in records)
    text += " Watched ACC and ASR are for this plot only: no defence sees them." if watched else ""
    parts.append(figure(path, f"Curves of the defences against {attack}", text))
    return "".join(parts)


def _sample_table(path: Path, sample: Samples, looks: Looks) -> str:
    """The picture of the first images and beneath it, column by column, what each model says of them."""
    count = min(SHOWN, len(sample.labels))
    share = 1.4 / (1.4 + count)  # the row labels are as wide as 1.4 images
    figures.save_samples(path, sample.clean[:count], sample.triggered[:count], label_share=share)
    targets = _targets(sample)
    picture = image(path, f"Clean and triggered test images under {sample.attack}, and ten times their difference")
    names = "".join(f"<th scope=col>{escape(sample.classes[int(label)])}</th>" for label in sample.labels[:count])
    head = [f"<th scope=row>true class</th>{names}</tr><tr><td colspan={count + 1} class=strip>{picture}</td>"]
    body = []
    for defense, both in sample.predictions.items():
        for kind, predicted in zip(("clean", "triggered"), both, strict=True):
            cells = [_prediction(sample, i, int(predicted[i]), targets) for i in range(count)]
            first = swatch(defense, looks).replace("</th>", f" <small>{kind}</small></th>")
            body.append(f"<tr class={kind}>{first}{''.join(cells)}</tr>")
    columns = f"table-layout:fixed;width:{104 * (1.4 + count):.0f}px;--first:{100 * share:.3f}%"
    text = f"The first {count} samples of seed {sample.seed} and the class each model sees in them; none is the backdoored model."
    if sample.likeness and np.isfinite(sample.likeness["psnr"]):
        found = sample.likeness
        text += f" The trigger changes an image by PSNR {found['psnr']:.1f} dB, SSIM {found['ssim']:.3f}, L∞ {found['largest']:.0f} of 255."
    return f"<figure>{table(head, [body], 'samples', columns)}<figcaption>{escape(text)}</figcaption></figure>"


def _prediction(sample: Samples, i: int, predicted: int, targets: np.ndarray | None) -> str:
    name = escape(sample.classes[predicted])
    if predicted == sample.labels[i]:
        return f"<td class=good>✓ {name}</td>"
    if targets is not None and predicted == targets[i]:
        return f"<td class=bad>{name} <b>→ target</b></td>"
    return f"<td class=fair>{name} <b>✗ wrong</b></td>"


def _targets(sample: Samples) -> np.ndarray | None:
    if sample.targets is not None:
        return np.asarray(sample.targets)
    undefined = np.flatnonzero(np.isnan(sample.per_class.get("none", {}).get("asr", np.zeros(0))))
    return np.full(len(sample.labels), undefined[0]) if len(undefined) == 1 else None


def _mean_per_class(samples: Sequence[Samples]) -> dict[str, dict[str, np.ndarray]]:
    """Per-class rates over the seeds where they are defined, nan where they never are."""
    mean: dict[str, dict[str, np.ndarray]] = {}
    for defense in dict.fromkeys(name for sample in samples for name in sample.per_class):
        for kind in ("acc", "asr"):
            found = [sample.per_class[defense][kind] for sample in samples if kind in sample.per_class.get(defense, {})]
            if found:
                rates = np.asarray(found, np.float64)
                known = np.isfinite(rates).sum(0)
                mean.setdefault(defense, {})[kind] = np.where(known > 0, np.nansum(rates, 0) / np.maximum(known, 1), np.nan)
    return mean


def _environment(folder: Path) -> str:
    parts = []
    try:
        known = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        body = [f"<tr><th scope=row>{escape(name)}</th><td class=text>{escape(value)}</td></tr>" for name, value in known.items()]
        parts.append(table([], [body], "plain") if body else "")
    except (FileNotFoundError, json.JSONDecodeError):
        pass  # a run that was killed has none, or half of one
    if (config := folder / "config.yaml").exists():
        text = escape(config.read_text(encoding="utf-8", errors="replace"))
        parts.append(f"<details><summary>Configuration</summary><pre tabindex=0>{text}</pre></details>")
    return f"<section><h2>How it was made</h2>{''.join(parts)}</section>" if any(parts) else ""


SHOWN = 8
GLOSSARY = f"""<section><h2>How to read it</h2><dl>
<dt>ACC</dt><dd>Accuracy: the share of clean test images classified as their true class.</dd>
<dt>ASR</dt><dd>Attack success rate: of the triggered test images whose true class is not the target, the share classified as the
target.</dd>
<dt>RA</dt><dd>Robust accuracy: of the same images, the share classified as their true class. A repair that moves triggered images
from the target to other wrong classes has a low ASR and a low RA.</dd>
<dt>DER</dt><dd>Defence effectiveness rating: <span class=formula>(max(0, ΔASR) − max(0, ΔACC) + 1) / 2</span>, with ΔASR and ΔACC
the drops from before to after. 100 % is the whole backdoor gone for nothing, 50 % is no effect.</dd>
<dt>Outcome</dt><dd><b>removed</b>: ASR below {100 * GONE:.0f} % on every seed. <b>keeps the backdoor</b>: ASR of
{100 * KEEPS:.0f} % or more. <b>weakened</b>: between them. <b>heavy ACC cost</b>: {100 * COSTLY:.0f} points of ACC or more.</dd>
</dl></section>"""
