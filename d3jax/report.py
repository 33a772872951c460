"""What a study found: results.csv, the table in the terminal, and one HTML page that explains itself. No jax.

A row is a dict with `COLUMNS` first and any others after: one for each (attack, defense, seed), fractions in [0, 1], None where
there is no number, `defense` "none" for the backdoored model. A text column `status` other than "ok" says why a run failed.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3jax import figures

Row = dict[str, Any]
Groups = dict[tuple[str, str, str], list[Row]]
"""Rows of `summarise` by (dataset, model, attack)."""
Looks = Mapping[str, tuple[str, Any]]
"""Colour and dash of every defence."""

COLUMNS = ("dataset", "model", "attack", "poison_rate", "defense", "seed")
COLUMNS += ("acc", "asr", "ra", "der", "n_clean", "n_triggered", "seconds")
TEXT = {"dataset", "model", "attack", "defense", "published", "status"}
RATES = ("acc", "asr", "ra", "der")
KEEPS = 0.5  # an ASR from here on: the backdoor works
GONE = 0.1  # an ASR below: what a model of ten classes reaches by chance
COSTLY = 0.1  # an ACC loss from here on is a price nobody pays unasked


class Samples(NamedTuple):
    """Test images of one attack and seed with what every model said of them, for the page.

    `clean` and `triggered` are uint8 [n, H, W, C], `labels` int [n] the true classes. `predictions[defense]` holds the classes
    [n] predicted for the clean and for the triggered images, `per_class[defense]` the fractions [K] "acc" and "asr" by true
    class, nan where undefined; "none" is the backdoored model in both. `targets` int [n] is the class the attacker wants for
    each image; without it the one class that has no ASR under "none" is taken for the target of all.
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


# ---------------------------------------------------------------------------------------------------------------- results.csv


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes rows to `path` in one stroke: a reader sees the old file or the new one. None is an empty cell, floats are exact.

    Raises:
        ValueError: a row lacks one of `COLUMNS`.
    """
    for number, row in enumerate(rows):
        if missing := [name for name in COLUMNS if name not in row]:
            raise ValueError(f"row {number} of {path} lacks the columns {missing}; it has {list(row)}")
    names = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    _write(Path(path), text.getvalue())


def read_csv(path: str | Path) -> list[Row]:
    """The rows `write_csv` wrote, with their types; a column that a row did not have is None."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: _value(name, cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _cell(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value  # numpy's scalars print as np.float64(…)
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _value(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if name in TEXT:
        return cell
    for read in (int, float):
        try:
            value = read(cell)
        except ValueError:
            continue
        if str(value) == cell:  # "007" and "1_000" are somebody's text
            return value
    return {"True": True, "False": False}.get(cell, cell)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared run folder's results from its other readers
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# ---------------------------------------------------------------------------------------------------------- what the rows say


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One row for each (dataset, model, attack, defense), in order of first appearance, over its seeds.

    Returns:
        Rows of those four names and, for each of acc, asr, ra, der, the mean (`acc`), the sample standard deviation (`acc_std`,
        None for a single seed) and, but for der, the mean change against the backdoored model of the same seed and poison rate
        (`acc_change`). Numbers that are None or not finite are left out. `n` counts the seeds with an ACC, `failed` those with
        a `status` other than "ok", whose first is in `status`; `kept` counts the seeds whose ASR is 50 % or more and
        `asr_worst` is the highest; `seconds` is a mean; `published` joins what the rows stand beside, None for nothing.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["model"], row["attack"], row["defense"]), []).append(row)
    before = {_run(row): row for row in rows if row["defense"] == "none"}
    return [_summary(key, group, before) for key, group in groups.items()]


def _run(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("dataset", "model", "attack", "poison_rate", "seed"))


def _summary(key: tuple[str, ...], group: list[Row], before: Mapping[tuple[Any, ...], Row]) -> Row:
    summary: Row = dict(zip(("dataset", "model", "attack", "defense"), key, strict=True))
    for rate in RATES:
        values = _finite(row[rate] for row in group)
        summary[rate] = statistics.fmean(values) if values else None
        summary[f"{rate}_std"] = statistics.stdev(values) if len(values) > 1 else None
        pairs = [(row[rate], before.get(_run(row), {}).get(rate)) for row in group if key[3] != "none" and rate != "der"]
        changes = [after - first for after, first in pairs if len(_finite((after, first))) == 2]
        summary[f"{rate}_change"] = statistics.fmean(changes) if changes else None
    failures = [row["status"] for row in group if row.get("status") not in (None, "ok")]
    rates, seconds = _finite(row["asr"] for row in group), _finite(row["seconds"] for row in group)
    beside = dict.fromkeys(str(row["published"]) for row in group if row.get("published") not in (None, "none"))
    return summary | {
        "n": len(_finite(row["acc"] for row in group)),
        "failed": len(failures),
        "status": failures[0] if failures else "ok",
        "kept": sum(value >= KEEPS for value in rates),
        "asr_worst": max(rates, default=None),
        "seconds": statistics.fmean(seconds) if seconds else None,
        "published": " / ".join(beside) or None,
    }


def _finite(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def verdict(row: Row) -> str:
    """What became of the backdoor, in words, for one row of `summarise`; "" where ASR is undefined."""
    failed = f"failed on {row['failed']} of {row['failed'] + row['n']} seeds" if row["failed"] else ""
    if not row["n"]:
        return row["status"] if row["failed"] else ""
    if row["asr"] is None:
        return failed
    kept = "" if row["kept"] == row["n"] else f" on {row['kept']} of {row['n']} seeds"
    if row["defense"] == "none":
        words = f"backdoor works{kept}" if row["kept"] else "backdoor does not work"
    elif row["kept"]:
        words = f"keeps the backdoor{kept}"
    else:
        words = "removed" if row["asr_worst"] < GONE else "weakened"
    if row["acc_change"] is not None and round(row["acc_change"], 6) <= -COSTLY:  # 0.8 − 0.9 is a hair above −0.1
        words += ", heavy ACC cost"
    return ", ".join(filter(None, (words, failed)))


def headline(group: Sequence[Row]) -> str:
    """One sentence on one attack from its rows of `summarise`: what the best defence reached, what the worst left behind."""
    before = next((row for row in group if row["defense"] == "none"), None)
    tried = [row for row in group if row["defense"] != "none"]
    ranked = _ranked([row for row in tried if row["asr"] is not None and row["acc"] is not None])
    if before and before["n"] and before["asr"] is None:
        return f"ACC {_percent(before['acc'])}; no trigger, so no ASR."
    start = f"ASR {_percent(before['asr'])}" if before and before["n"] else ""
    parts = []
    if start and not before["kept"]:
        parts.append(f"the backdoor does not work even before a defence ({start}), so there is little to remove")
    if ranked:
        best, lost = ranked[0], all(row["kept"] for row in ranked)
        lead = "no defence removes the backdoor; the best: " if lost and len(ranked) > 1 else ""
        change = f"{start} → {_percent(best['asr'])}" if start else f"ASR {_percent(best['asr'])}"
        words = verdict(best)
        parts.append(f"{lead}{change} under {best['defense']} {_cost(best)}" + ("" if words == "removed" else f" ({words})"))
    elif start:
        what = "no defence gave numbers" if tried else "no defence was run"
        parts.append(f"{start} at ACC {_percent(before['acc'])}, {what}")
    if len(ranked) > 1:
        worst = ranked[-1]
        parts.append(f"worst of {len(ranked)}: {worst['defense']}, {verdict(worst)}, ASR {_percent(worst['asr'])} {_cost(worst)}")
    if dead := [f"{row['defense']} ({row['status']})" for row in group if row["failed"] and not row["n"]]:
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
    return "at no ACC cost" if points == "0.0" else f"at an ACC {'cost' if row['acc_change'] < 0 else 'gain'} of {points} points"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None, sign: bool = False, digits: int = 2) -> str:
    """In percent; with `sign` as a change, whose minus is a real one."""
    if value is None:
        return "" if sign else "–"
    text = f"{100 * value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")  # no "−0.00"


def _spread(row: Row, rate: str) -> str:
    return _points(row[rate]) + ("" if row[f"{rate}_std"] is None else f" ± {_points(row[f'{rate}_std'])}")


# --------------------------------------------------------------------------------------------------------------- the terminal


def terminal_table(rows: Sequence[Row]) -> str:
    """The study in plain text, 100 columns or as many as it needs: a line for each (attack, defense), in percent."""
    from rich.console import Console
    from rich.measure import Measurement

    table = _table(summarise(rows))
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False, force_jupyter=False)
    console.width = max(100, Measurement.get(console, console.options, table).maximum)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def print_table(rows: Sequence[Row], file: Any = None) -> None:
    """Prints the table: in colour to a terminal, as `terminal_table` anywhere else."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        print(terminal_table(rows), file=file)
        return
    table = _table(summarise(rows))
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).minimum
    console.width = max(console.width, needed)  # a line that the terminal wraps is better than digits cut off
    console.print(table)


def _table(summaries: Sequence[Row]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    where = [name for name in ("dataset", "model") if len({row[name] for row in summaries}) > 1]
    published = any(row["published"] for row in summaries)
    table = Table(box=box.SIMPLE_HEAD, title=None, pad_edge=False)
    for name in (*where, "attack", "defense"):
        table.add_column(name, overflow="fold")
    for name in ("ACC", "change", "ASR", "change", "RA", "change", "DER", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("outcome", *(["published"] if published else [])):
        table.add_column(name, overflow="fold")
    last = None
    for row in summaries:
        group = _group(row)
        if last not in (None, group):
            table.add_section()
        last = group
        numbers = [cell for rate in RATES[:3] for cell in (_spread(row, rate), _points(row[f"{rate}_change"], sign=True))]
        style = {"keeps": "bold red", "removed": "green"}.get(verdict(row).split(" ")[0].strip(","), "")
        cells = [*(row[name] for name in where), row["attack"], row["defense"], *numbers, _spread(row, "der"), str(row["n"])]
        outcome = Text(verdict(row), style=style)
        table.add_row(*map(Text, cells), outcome, *([Text(row["published"] or "none")] if published else []))
    return table


def _group(row: Row) -> tuple[str, str, str]:
    return row["dataset"], row["model"], row["attack"]


# --------------------------------------------------------------------------------------------------------------- the HTML page


def write_report(workdir: str | Path, rows: Sequence[Row], samples: Sequence[Samples], title: str) -> Path:
    """Writes `report.html` into `workdir`, one page that needs no other file, and its pictures also as `figures/*.png`.

    Reads `metrics.jsonl` (curves), `environment.json` and `config.yaml` in `workdir`; what is not there is left out of the page.
    """
    folder = Path(workdir)
    metrics = figures.read_metrics(folder / "metrics.jsonl")
    groups: Groups = {}
    for row in summarise(rows):
        groups.setdefault(_group(row), []).append(row)
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
    _write(folder / "report.html", PAGE.format(title=_e(title), css=CSS, body="\n".join(filter(None, parts))))
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
    kinds = {"removed": ("good", "✓"), "weakened": ("fair", "◐"), "keeps": ("bad", "✗"), "backdoor": ("before", "•")}
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
    signs = "✓ removed, ◐ weakened, ✗ keeps the backdoor on some seed, ! failed or a heavy ACC cost."
    return f"<section><h2>At a glance</h2>{_table_html(head, [body], 'glance')}<p class=note>{note} {signs}</p></section>"


def _glance_cell(row: Row | None) -> str:
    if row is None or row["asr"] is None:
        return f"<td class=n>{_mark('failed') if row and row['failed'] else '–'}</td>"
    words = "" if row["defense"] == "none" else verdict(row)
    sign = _mark(words, short=True) + (_mark("!", short=True) if "," in words else "")
    change = f" ({_points(row['acc_change'], True, 1)})" if row["acc_change"] is not None else ""
    small = f"<small>{_points(row['acc'], digits=1)}{change}</small>"
    return f'<td class="n bar asr" style="--v:{100 * row["asr"]:.1f}">{sign} {_points(row["asr"], digits=1)}{small}</td>'


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
        rates = dict.fromkeys(f"{_points(row['poison_rate'], digits=2)} %" for row in rows if _group(row) == key)
        poison = f"poison rate {', '.join(rates)}" + (" together" if len(rates) > 1 else "")
        seeds = len({row["seed"] for row in rows if _group(row) == key})
        about = f"{_label(key, groups)} <small>{poison} · {seeds} seed{'' if seeds == 1 else 's'}</small>"
        top = f"<tr class=group><th colspan={7 + published} scope=rowgroup><span>{about}</span></th></tr>"
        bodies.append([top, *(_study_row(row, published, looks) for row in group)])
    spread = " ± is the sample standard deviation over seeds." if len({row["seed"] for row in rows}) > 1 else ""
    note = f"In percent.{spread} The small line is the change in points against the backdoored model (none) of the same seed."
    return f"<section><h2>Before and after</h2>{_table_html(head, bodies, 'study')}<p class=note>{note}</p></section>"


def _study_row(row: Row, published: bool, looks: Looks) -> str:
    cells = []
    for rate in RATES:
        text = _points(row[f"{rate}_change"], sign=True)
        kind = "same" if text in ("", "0.00") else "better" if (row[f"{rate}_change"] < 0) == (rate == "asr") else "worse"
        bar = rate in ("acc", "asr") and row[rate] is not None
        style = f'class="n bar {rate}" style="--v:{100 * row[rate]:.1f}"' if bar else "class=n"
        cells.append(f"<td {style}>{_e(_spread(row, rate))}<small class={kind}>{text}</small></td>")
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
