"""What a study found: results.csv, summaries over seeds, and the table in the terminal. No jax.

A row is a dict with `COLUMNS` first and any others after: one for each (attack, defense, seed), fractions in [0, 1], None where
there is no number, `defense` "none" for the backdoored model. A text column `status` other than "ok" says why a run failed.
"""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

NUMBERS = ("acc", "asr", "ra", "der", "n_clean", "n_triggered", "seconds")
COLUMNS = ("dataset", "model", "attack", "poison_rate", "defense", "seed", *NUMBERS)
TEXT = {"dataset", "model", "attack", "defense", "published", "status"}
RATES = ("acc", "asr", "ra", "der")
KEEPS = 0.5  # an ASR from here on: the backdoor works
GONE = 0.1  # an ASR below: what a model of ten classes reaches by chance
COSTLY = 0.1  # an ACC loss from here on is a price nobody pays unasked


def write_csv(path: str | Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Writes rows, `columns` first, to `path` in one stroke: a reader sees the old file or the new one. None is an empty cell, floats are exact.

    Raises:
        ValueError: a row lacks one of `columns`.
    """
    for number, row in enumerate(rows):
        if missing := [name for name in columns if name not in row]:
            raise ValueError(f"row {number} of {path} lacks the columns {missing}; it has {list(row)}")
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    write_whole(Path(path), text.getvalue())


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


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
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


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One row for each (dataset, model, attack, defense), in order of first appearance, over its seeds.

    Returns:
        Rows of those four names and, for each of acc, asr, ra, der, the mean (`acc`), the sample standard deviation (`acc_std`,
        None for a single seed) and, but for der, the mean change against the backdoored model of the same seed and poison rate
        (`acc_change`). Numbers that are None or not finite are left out. `n` counts the seeds with an ACC, `failed` those with
        a `status` other than "ok", whose first is in `status`; `kept` counts the seeds whose ASR is 50 % or more, `worked` those
        whose backdoored model's is (None where no such model is known), and `asr_worst` is the highest; `seconds` is a mean, with
        what a search for a trigger took; `untouched` counts the seeds where a defence found nothing to repair, `searched` says what
        it found, None for defences that do not search; `published` joins what the rows stand beside, None for nothing.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in _distinct(rows):
        groups.setdefault((row["dataset"], row["model"], row["attack"], row["defense"]), []).append(row)
    before = {_run(row): row for row in rows if row["defense"] == "none"}
    return [_summary(key, group, before) for key, group in groups.items()]


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows, a backdoored model that several seeds share counted once."""
    models = {(*_run(row)[:4], row.get("attack_seed", row["seed"])): row for row in reversed(rows) if row["defense"] == "none"}
    return [row for row in rows if row["defense"] != "none" or row in models.values()]


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
    rates = _finite(row["asr"] for row in group)
    seconds = [first + sum(_finite([row.get("search_seconds")])) for row in group for first in _finite([row["seconds"]])]
    earlier = _finite(before.get(_run(row), {}).get("asr") for row in group)
    searched = [row for row in group if row.get("chosen")]
    beside = dict.fromkeys(str(row["published"]) for row in group if row.get("published") not in (None, "none"))
    return summary | {
        "n": len(_finite(row["acc"] for row in group)),
        "failed": len(failures),
        "status": failures[0] if failures else "ok",
        "kept": sum(value >= KEEPS for value in rates),
        "worked": sum(value >= KEEPS for value in earlier) if earlier else None,
        "asr_worst": max(rates, default=None),
        "seconds": statistics.fmean(seconds) if seconds else None,
        "published": " / ".join(beside) or None,
        "untouched": sum(row["target"] == -1 for row in searched),
        "searched": "; ".join(dict.fromkeys(_searched(row) for row in searched)) or None,
    }


def _searched(row: Row) -> str:
    """What a defence that searched for a trigger found out first."""
    if row["target"] == -1:
        return row["chosen"]
    turns = "" if row["trigger_success"] is None else f", trigger turns {100 * row['trigger_success']:.0f} %"
    return f"class {row['target']} {row['chosen']}{turns}"


def _finite(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def verdict(row: Row) -> str:
    """What became of the backdoor, in words, for one row of `summarise`; "" where ASR is undefined."""
    what = "not finished" if row["status"].startswith("not finished") else "failed"
    failed = f"{what} on {row['failed']} of {row['failed'] + row['n']} seeds" if row["failed"] else ""
    if not row["n"]:
        return row["status"] if row["failed"] else ""
    if row["asr"] is None:
        return failed
    if row["untouched"] == row["n"]:
        return ", ".join(filter(None, ("not repaired: nothing flagged", failed)))
    kept = "" if row["kept"] == row["n"] else f" on {row['kept']} of {row['n']} seeds"
    if row["defense"] == "none":
        words = f"backdoor works{kept}" if row["kept"] else "backdoor does not work"
    elif row["worked"] == 0:
        words = f"makes a backdoor{kept}" if row["kept"] else "no backdoor to remove"
    elif row["kept"]:
        words = f"keeps the backdoor{kept}"
    elif row["asr_worst"] < GONE:
        words = "removed"
    else:
        words = "not weakened" if row["asr_change"] is not None and row["asr_change"] >= 0 else "weakened"
    if row["acc_change"] is not None and round(row["acc_change"], 6) <= -COSTLY:  # 0.8 − 0.9 is a hair above −0.1
        words += ", heavy ACC cost"
    return ", ".join(filter(None, (words, failed)))


def headline(group: Sequence[Row]) -> str:
    """One sentence on one attack from its rows of `summarise`: what the best defence reached, what the worst left behind."""
    before = next((row for row in group if row["defense"] == "none"), None)
    tried = [row for row in group if row["defense"] != "none"]
    ranked = _ranked([row for row in tried if row["asr"] is not None and row["acc"] is not None])
    if before and before["n"] and before["asr"] is None:
        return f"ACC {_percent(before['acc'])}; without a trigger there is no ASR."
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


def points(value: float | None, sign: bool = False, digits: int = 2) -> str:
    """In percent; with `sign` as a change, whose minus is a real one."""
    if value is None:
        return "" if sign else "–"
    text = f"{100 * value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")  # no "−0.00"


def spread(row: Row, rate: str) -> str:
    """A fraction in percent, ± the sample standard deviation where there are several seeds."""
    return points(row[rate]) + ("" if row[f"{rate}_std"] is None else f" ± {points(row[f'{rate}_std'])}")


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
        group = group_of(row)
        if last not in (None, group):
            table.add_section()
        last = group
        numbers = [cell for rate in RATES[:3] for cell in (spread(row, rate), points(row[f"{rate}_change"], sign=True))]
        style = {"keeps": "bold red", "not": "bold red", "makes": "bold red", "removed": "green"}.get(
            verdict(row).split(" ")[0].strip(","), ""
        )
        cells = [*(row[name] for name in where), row["attack"], row["defense"], *numbers, spread(row, "der"), str(row["n"])]
        outcome = Text(verdict(row), style=style)
        table.add_row(*map(Text, cells), outcome, *([Text(row["published"] or "none")] if published else []))
    return table


def print_detections(rows: Sequence[Row]) -> None:
    """Prints a line for every detection of `detection_rows`, nothing where there are none."""
    if rows:
        print("\n".join(f" {detection['text']}" for detection in detections(rows)) + "\n")


def detections(rows: Sequence[Row]) -> list[Row]:
    """One row for each (dataset, model, attack, seed, detection) of detections.csv: its highest index among the small norms, the
    classes `flagged`, whether that is `right` (all and only targets; None where that is not known), and a `text` that says so."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("dataset", "model", "attack", "seed", "detection")), []).append(row)
    found = []
    for key, group in groups.items():
        named = dict(zip(("dataset", "model", "attack", "seed", "detection"), key, strict=True))
        flagged = [str(row["class"]) for row in group if row["flagged"]]
        targets = [str(row["class"]) for row in group if row["is_target"]]
        smallest = min(group, key=lambda row: row["norm"])
        what = f"flags {', '.join(flagged)}" if flagged else "flags nothing"
        hit, alarm = [name for name in flagged if name in targets], [name for name in flagged if name not in targets]
        right = None if all(row["is_target"] is None for row in group) else flagged == targets
        if right is None:
            words = "whether rightly is not known"
        elif not targets:
            words = "no backdoor: false alarm" if flagged else "no backdoor: right"
        else:
            words = "right" if len(hit) == len(targets) else f"finds {len(hit)} of {len(targets)} targets ({', '.join(targets)})"
            words += ", and false alarms" if alarm else ""
        text = f"{named['attack']}, seed {named['seed']}, {named['detection']}: {what} (index of the smallest {smallest['index']:.2f}); {words}"
        found.append(
            named
            | {
                "flagged": flagged,
                "anomaly_index": smallest["index"],
                "right": right,
                "text": text,
            }
        )
    return found


def group_of(row: Row) -> tuple[str, str, str]:
    """What rows of one table share: data set, model, attack."""
    return row["dataset"], row["model"], row["attack"]
