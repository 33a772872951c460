"""report.html: one page, needing no other file, that shows what a study found and explains itself. No jax."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import figures
from .report import COSTLY, GONE, KEEPS, RATES, Row, group_of, headline, points, spread, summarise, verdict, write_whole

Groups = dict[tuple[str, str, str], list[Row]]
"""Rows of `summarise` by (dataset, model, attack)."""
Looks = Mapping[str, tuple[str, Any]]
"""Colour and dash of every defence."""


class Samples(NamedTuple):
    """Test images of one attack and seed with what every model said of them, for the page.

    `clean` and `triggered` are uint8 [n, H, W, C], `labels` int [n] the true classes. `predictions[defense]` holds the classes
    [n] predicted for the clean and for the triggered images, `per_class[defense]` the fractions [K] "acc" and "asr" by true
    class, nan where undefined; "none" is the backdoored model in both. `targets` int [n] is the class the attacker wants for
    each image; without it the one class that has no ASR under "none" is taken for the target of all. `likeness` has the trigger's
    `psnr` (dB), `ssim` and `largest` change (8-bit levels).
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


def write_report(workdir: str | Path, rows: Sequence[Row], samples: Sequence[Samples], title: str) -> Path:
    """Writes `report.html` into `workdir`, one page that needs no other file, and its pictures also as `figures/*.png`.

    Reads `metrics.jsonl` (curves), `environment.json` and `config.yaml` in `workdir`; what is not there is left out of the page.
    """
    folder = Path(workdir)
    metrics = figures.read_metrics(folder / "metrics.jsonl")
    if rows:  # a run folder may hold stages of an earlier config
        cells = {(row["attack"], row["defense"]) for row in rows} | {(row["attack"], "train") for row in rows}
        metrics = {
            attack: {run: lines for run, lines in runs.items() if (attack, run[0]) in cells} for attack, runs in metrics.items()
        }
    groups: Groups = {}
    for row in summarise(rows):
        groups.setdefault(group_of(row), []).append(row)
    looks = figures.palette([row["defense"] for row in rows] + [name for sample in samples for name in sample.predictions])
    attacks = list(dict.fromkeys([*(row["attack"] for row in rows), *(sample.attack for sample in samples), *metrics]))
    links, details = [], []
    for attack, stem in zip(attacks, _stems(attacks), strict=True):
        mine = [sample for sample in samples if sample.attack == attack]
        if text := _attack(folder / "figures" / stem, attack, mine, metrics.get(attack, {}), looks):
            details.append(f'<section id="{stem}"><h2>{_e(attack)} in detail</h2>{text}</section>')
            links.append(f'<a href="#{stem}">{_e(attack)}</a>')
    parts = [
        f"<header><h1>{_e(title)}</h1><p class=note>{_subtitle(rows)}</p></header>",
        _headlines(groups),
        f"<nav aria-label='Attacks'>In detail: {' '.join(links)}</nav>" if len(links) > 1 else "",
        _glance(groups, looks),
        _study_table(groups, rows, looks),
        GLOSSARY if rows else "",
        *details,
        _environment(folder),
    ]
    write_whole(folder / "report.html", PAGE.format(title=_e(title), css=CSS, body="\n".join(filter(None, parts))))
    return folder / "report.html"


def _e(text: Any) -> str:
    return html.escape(str(text))


def _stems(names: Sequence[str]) -> list[str]:
    """File names for attacks: theirs, made harmless, with a number where two become the same."""
    stems: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "attack"
        stems.append(stem if stem not in stems else f"{stem}-{len(stems)}")
    return stems


def _subtitle(rows: Sequence[Row]) -> str:
    parts = [", ".join(dict.fromkeys(_e(row[name]) for row in rows)) for name in ("dataset", "model")]
    for name, word in (("attack", "attack"), ("defense", "defence"), ("seed", "seed")):
        count = len({row[name] for row in rows} - {"none"})
        parts.append(f"{count} {word}{'' if count == 1 else 's'}" if count else "")
    return " · ".join(filter(None, parts))


def _label(group: tuple[str, str, str], groups: Groups) -> str:
    """The attack, with its dataset and model where the study has several."""
    extra = [group[i] for i in (0, 1) if len({other[i] for other in groups}) > 1]
    return _e(group[2]) + (f" <small>{_e(', '.join(extra))}</small>" if extra else "")


def _swatch(defense: str, looks: Looks) -> str:
    return f'<th scope=row><i class=swatch style="background:{looks[defense][0]}"></i>{_e(defense)}</th>'


def _mark(words: str, short: bool = False) -> str:
    """A verdict, or with `short` only its sign; the sign is there so that colour is not all that carries it."""
    kinds = {"removed": ("good", "✓"), "weakened": ("fair", "◐"), "backdoor": ("before", "•"), "no": ("before", "•")}
    kinds |= dict.fromkeys(("keeps", "not", "makes"), ("bad", "✗"))
    kind, sign = kinds.get(re.split("[ ,]", words)[0], ("bad", "!"))
    return f'<span class="mark {kind}">{sign}{"" if short else " " + _e(words)}</span>' if words else ""


def _table_html(head: Sequence[str], bodies: Sequence[Sequence[str]], kind: str = "", style: str = "") -> str:
    """A table that scrolls sideways where it is wider than the screen, from finished cells and finished rows."""
    top = f"<thead><tr>{''.join(head)}</tr></thead>" if head else ""
    rest = "".join(f"<tbody>{''.join(body)}</tbody>" for body in bodies)
    return f'<div class=wide tabindex=0><table class="{kind}" style="{style}">{top}{rest}</table></div>'


def _headlines(groups: Groups) -> str:
    lines = [f"<li><b>{_label(key, groups)}</b>: {_e(text)}</li>" for key, group in groups.items() if (text := headline(group))]
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
        body.append(f"<tr>{_swatch(defense, looks)}{''.join(map(_glance_cell, cells))}</tr>")
    note = "ASR in percent (lower is better), beneath it ACC and what the defence changed of it in points."
    signs = "✓ removed, ◐ weakened, ✗ keeps the backdoor on some seed or does not weaken it, • had none to remove, ! failed or a heavy ACC cost."
    return f"<section><h2>At a glance</h2>{_table_html(head, [body], 'glance')}<p class=note>{note} {signs}</p></section>"


def _glance_cell(row: Row | None) -> str:
    if row is None or row["asr"] is None:
        return f"<td class=n>{_mark('failed') if row and row['failed'] else '–'}</td>"
    words = "" if row["defense"] == "none" else verdict(row)
    sign = _mark(words, short=True) + (_mark("!", short=True) if "," in words else "")
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
    return f"<section><h2>Before and after</h2>{_table_html(head, bodies, 'study')}<p class=note>{note}</p></section>"


def _study_row(row: Row, published: bool, looks: Looks) -> str:
    cells = []
    for rate in RATES:
        text = points(row[f"{rate}_change"], sign=True)
        kind = "same" if text in ("", "0.00") else "better" if (row[f"{rate}_change"] < 0) == (rate == "asr") else "worse"
        bar = rate in ("acc", "asr") and row[rate] is not None
        style = f'class="n bar {rate}" style="--v:{100 * row[rate]:.1f}"' if bar else "class=n"
        cells.append(f"<td {style}>{_e(spread(row, rate))}<small class={kind}>{text}</small></td>")
    seconds = row["seconds"]
    time = "–" if seconds is None else f"{seconds:,.{0 if seconds >= 10 else 1}f}".replace(",", "\u202f")
    beside = f"<td class='text soft'>{_e(row['published'] or 'none')}</td>" if published else ""
    kind = "before" if row["defense"] == "none" else "after"
    first = f"{_swatch(row['defense'], looks)}<td class=text>{_mark(verdict(row))}</td>"
    return f"<tr class={kind}>{first}{''.join(cells)}<td class=n>{time}</td>{beside}</tr>"


def _attack(stem: Path, attack: str, samples: Sequence[Samples], runs: figures.Runs, looks: Looks) -> str:
    """The samples, bars and curves of one attack; "" where there are none."""
    parts = [_sample_table(Path(f"{stem}-samples.png"), samples[0], looks)] if samples and len(samples[0].labels) else []
    if samples:
        over = f"mean over {len(samples)} seeds" if len(samples) > 1 else f"seed {samples[0].seed}"
        path = figures.save_classes(Path(f"{stem}-classes.png"), samples[0].classes, _mean_per_class(samples), looks)
        text = f"ACC and ASR by true class ({over}). Wide grey bars: before; narrow bars: after. The target class has no ASR."
        parts.append(_figure(path, f"ACC and ASR by true class under {attack}", text))
    seeds = len({seed for _, seed in runs})
    thin = f" One line for each of {seeds} seeds." if seeds > 1 else ""
    training = {run: records for run, records in runs.items() if run[0] == "train"}
    path = figures.save_curves(Path(f"{stem}-training.png"), training, figures.TRAINING, looks)
    parts.append(_figure(path, f"Training curves under {attack}", f"Training the backdoored model.{thin}"))
    repair = {run: records for run, records in runs.items() if run[0] != "train"}
    path = figures.save_curves(Path(f"{stem}-defenses.png"), repair, figures.REPAIR, looks)
    text = f"The defences at work.{thin} Where a defence logs no clean loss, its training loss stands in."
    watched = any("watch_asr" in record or "watch_acc" in record for records in repair.values() for record in records)
    text += " Watched ACC and ASR are for this plot only: no defence sees them." if watched else ""
    parts.append(_figure(path, f"Curves of the defences against {attack}", text))
    return "".join(parts)


def _figure(path: Path | None, alt: str, caption: str) -> str:
    if path is None:
        return ""
    return f"<figure><div class=wide tabindex=0>{_image(path, alt)}</div><figcaption>{_e(caption)}</figcaption></figure>"


def _image(path: Path, alt: str) -> str:
    return f'<img alt="{_e(alt)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _sample_table(path: Path, sample: Samples, looks: Looks) -> str:
    """The picture of the first images and beneath it, column by column, what each model says of them."""
    count = min(SHOWN, len(sample.labels))
    share = 1.4 / (1.4 + count)  # the row labels are as wide as 1.4 images
    figures.save_samples(path, sample.clean[:count], sample.triggered[:count], label_share=share)
    targets = _targets(sample)
    image = _image(path, f"Clean and triggered test images under {sample.attack}, and ten times their difference")
    names = "".join(f"<th scope=col>{_e(sample.classes[int(label)])}</th>" for label in sample.labels[:count])
    head = [f"<th scope=row>true class</th>{names}</tr><tr><td colspan={count + 1} class=strip>{image}</td>"]
    body = []
    for defense, both in sample.predictions.items():
        for kind, predicted in zip(("clean", "triggered"), both, strict=True):
            cells = [_prediction(sample, i, int(predicted[i]), targets) for i in range(count)]
            first = _swatch(defense, looks).replace("</th>", f" <small>{kind}</small></th>")
            body.append(f"<tr class={kind}>{first}{''.join(cells)}</tr>")
    columns = f"table-layout:fixed;width:{104 * (1.4 + count):.0f}px;--first:{100 * share:.3f}%"
    text = f"The first {count} samples of seed {sample.seed} and the class each model sees in them; none is the backdoored model."
    if sample.likeness and np.isfinite(sample.likeness["psnr"]):
        found = sample.likeness
        text += f" The trigger changes an image by PSNR {found['psnr']:.1f} dB, SSIM {found['ssim']:.3f}, L∞ {found['largest']:.0f} of 255."
    return f"<figure>{_table_html(head, [body], 'samples', columns)}<figcaption>{_e(text)}</figcaption></figure>"


def _prediction(sample: Samples, i: int, predicted: int, targets: np.ndarray | None) -> str:
    name = _e(sample.classes[predicted])
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
        body = [f"<tr><th scope=row>{_e(name)}</th><td class=text>{_e(value)}</td></tr>" for name, value in known.items()]
        parts.append(_table_html([], [body], "plain") if body else "")
    except (FileNotFoundError, json.JSONDecodeError):
        pass  # a run that was killed has none, or half of one
    if (config := folder / "config.yaml").exists():
        text = _e(config.read_text(encoding="utf-8", errors="replace"))
        parts.append(f"<details><summary>Configuration</summary><pre tabindex=0>{text}</pre></details>")
    return f"<section><h2>How it was made</h2>{''.join(parts)}</section>" if any(parts) else ""


SHOWN = 8
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{css}</style></head>
<body>
{body}
</body></html>
"""
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
CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2329;--soft:#5a646e;--line:#e1e5e8;--group:#f1f3f5;
--good:#00629b;--bad:#a83c00;--fair:#6b5300;--acc:#0072b2a0;--asr:#d55e00b0}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1b1f23;--ink:#e4e8eb;--soft:#9aa5af;--line:#2e353b;--group:#23292e;
--good:#6cbcf0;--bad:#ff9a5c;--fair:#e0c04c;--acc:#56b4e9a0;--asr:#e8743bb8}}
*{box-sizing:border-box}html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1.5rem clamp(.9rem,4vw,2.5rem) 4rem;max-width:1120px;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:.5rem 0 .25rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.75rem 0 .75rem;overflow-wrap:anywhere}
.soft{color:var(--soft)}.note,figcaption{color:var(--soft);font-size:.875rem;margin:.5rem 0 0;max-width:96ch}
.lead{list-style:none;margin:0;padding:0;max-width:82ch}
.lead li{padding:.3rem 0 .3rem .9rem;border-left:3px solid var(--line);margin:.5rem 0}
nav{margin:1.25rem 0 0;font-size:.9rem;color:var(--soft);line-height:1.9}nav a{margin-right:.6rem}a{color:var(--good)}
.wide{overflow-x:auto;width:fit-content;max-width:100%;border:1px solid var(--line);border-radius:8px;background:var(--card)}
table{border-collapse:separate;border-spacing:0;font-size:.875rem;line-height:1.35}
.study{width:100%}th,td{padding:.45rem var(--pad,.7rem);text-align:left;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;vertical-align:bottom;font-weight:600}thead small,small{font-weight:400;color:var(--soft)}
tbody th{font-weight:500}td small,th.n small{display:block;font-size:.78rem}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.study th,.glance th{white-space:nowrap}
.study th:first-child,.glance th:first-child{position:sticky;left:0;background:var(--card);z-index:1}
.group th{background:var(--group)!important;font-weight:600}.group span{position:sticky;left:.7rem}
.before th,.before td{color:var(--soft)}td.text{min-width:9.5rem}
.bar{background:linear-gradient(90deg,var(--tint) calc(var(--v)*1%),var(--line) 0) no-repeat;
background-position:var(--pad,.7rem) 100%;background-size:calc(100% - 2*var(--pad,.7rem)) 3px}
.glance{--pad:.45rem;font-size:.83rem}.acc{--tint:var(--acc)}.asr{--tint:var(--asr)}
.swatch{display:inline-block;width:.65rem;height:.65rem;border-radius:2px;margin-right:.45rem}
.good,.better{color:var(--good)}.bad,small.worse{color:var(--bad)}.fair{color:var(--fair)}td small.better{color:var(--good)}
.mark.bad{font-weight:600}.mark.before{color:var(--soft)}
figure{margin:0 0 1.75rem}figure img{display:block;width:100%;min-width:680px;background:#fff}
.samples{max-width:none}.samples th,.samples td{padding:.3rem .4rem;font-size:.8rem;overflow-wrap:anywhere}
.samples th:first-child{width:var(--first)}.samples .strip{padding:0}.samples img{min-width:0}
.samples .triggered th,.samples .triggered td{border-top:0;padding-top:0}.samples b{font-weight:600;display:block}
dl{display:grid;grid-template-columns:auto 1fr;gap:.4rem 1rem;max-width:80ch;margin:0}dt{font-weight:600}dd{margin:0}
.formula{white-space:nowrap;font-variant-numeric:tabular-nums}pre{overflow-x:auto;font-size:.8rem;line-height:1.45}
details{margin-top:1rem}summary{cursor:pointer;font-weight:500}
.plain th{font-weight:500;color:var(--soft);white-space:nowrap}.plain tr:first-child>*{border-top:0}
@media(max-width:560px){dl{display:block}dd{margin:0 0 .6rem}.formula{white-space:normal}}
@media print{.wide{overflow:visible;border:0}section{break-inside:avoid-page}}
"""
