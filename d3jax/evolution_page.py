"""Evolving models in the report: curves over updates, learning-rate strategies, survivability. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figures import WIDTH, drawing
from .markup import Looks, escape, figure, swatch, table
from .report import Row, points

TAUS = ("0.9", "0.5", "0.1")
PANELS = (
    ("acc", "ACC", (0, 103)),
    ("stale_acc", "Stale ACC: the model before the update", (0, 103)),
    ("asr", "ASR", (-3, 103)),
    ("control", "Control: target rate of the clean lineage", (-3, 103)),
)


def show_evolutions(stem: Path, evolved: Sequence[Row], rows: Sequence[Row], strategies: Mapping[str, Any], looks: Looks) -> str:
    """For one attack: what the lineages did, from its rows of evolution.csv and of results.csv; "" where there are none.

    `strategies` has the learning rates [n] of an update by the evolution's label.
    """
    if not evolved:
        return ""
    seeds = len({row["seed"] for row in evolved})
    spread = f" Lines are means over {seeds} seeds, bands one standard deviation." if seeds > 1 else ""
    path = _save_curves(Path(f"{stem}-evolution.png"), evolved, looks)
    text = f"Rates on test images that drift with the updates; update 0 is the model they begin with.{spread}"
    parts = [figure(path, "Rates over the updates", text)]
    path = _save_strategies(Path(f"{stem}-rates.png"), strategies, looks)
    parts.append(figure(path, "Learning rates within an update", "Learning rate of every step of an update, the same in each."))
    return "".join(parts) + _table(evolved, rows, looks)


def series(evolved: Sequence[Row], evolution: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Updates, mean and sample standard deviation over seeds (0 for one) of a column for one evolution, where it has numbers."""
    values: dict[int, list[float]] = {}
    for row in evolved:
        if row["evolution"] == evolution and row[name] is not None:
            values.setdefault(row["update"], []).append(row[name])
    at = sorted(values)
    deviations = [np.std(values[update], ddof=1) if len(values[update]) > 1 else 0.0 for update in at]
    return np.array(at), np.array([np.mean(values[update]) for update in at]), np.array(deviations)


def _save_curves(path: Path, evolved: Sequence[Row], looks: Looks) -> Path:
    labels = list(dict.fromkeys(row["evolution"] for row in evolved))
    drawn = [panel for panel in PANELS if any(row[panel[0]] is not None for row in evolved)]
    with drawing(path, (WIDTH, 2.6 * ((len(drawn) + 1) // 2) + 0.4)) as picture:
        axes = picture.subplots((len(drawn) + 1) // 2, 2, squeeze=False).flatten()
        for axis, (name, title, limits) in zip(axes, drawn, strict=False):
            for label in labels:
                at, mean, deviation = series(evolved, label, name)
                colour, dash = looks.get(label, ("#6f7780", "-"))
                axis.plot(at, 100 * mean, color=colour, linestyle=dash, linewidth=1.5, label=label, marker="o", markersize=2.5)
                axis.fill_between(at, 100 * (mean - deviation), 100 * (mean + deviation), color=colour, alpha=0.15, linewidth=0)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set(title=title, xlabel="update", ylabel="share (%)", ylim=limits)
        for axis in axes[len(drawn) :]:
            axis.set_axis_off()
        handles, names = axes[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside upper left", ncols=min(6, len(names)), handlelength=1.8)
    return path


def _save_strategies(path: Path, strategies: Mapping[str, Any], looks: Looks) -> Path | None:
    if not strategies:
        return None
    columns = min(4, len(strategies))
    lines = -(-len(strategies) // columns)
    with drawing(path, (WIDTH, 1.6 * lines + 0.2)) as picture:
        axes = picture.subplots(lines, columns, squeeze=False).flatten()
        for axis, (label, rates) in zip(axes, strategies.items(), strict=False):
            axis.plot(np.arange(1, len(rates) + 1), rates, color=looks.get(label, ("#6f7780", "-"))[0], linewidth=1.2)
            axis.set(title=label[:26], ylim=(0, 1.05 * float(np.max(rates)) or 1.0))
            axis.tick_params(labelsize=7.5)
        for axis in axes[len(strategies) :]:
            axis.set_axis_off()
    return path


def _table(evolved: Sequence[Row], rows: Sequence[Row], looks: Looks) -> str:
    """Survivability and mean accuracy of every evolution."""
    head = ["<th scope=col>Evolution</th>"]
    head += [f"<th scope=col class=n>S at ASR {tau}<small>updates survived</small></th>" for tau in TAUS]
    head += [
        "<th scope=col class=n>ACC<small>mean over updates</small></th>",
        "<th scope=col class=n>Stale ACC<small>mean</small></th>",
    ]
    body = []
    for label in dict.fromkeys(row["evolution"] for row in evolved):
        mine = [row for row in rows if row["defense"] == label]
        cells = [f"<td class=n>{escape(survived(mine, tau))}</td>" for tau in TAUS]
        for name in ("acc", "stale_acc"):
            values = [row[name] for row in evolved if row["evolution"] == label and row["update"] and row[name] is not None]
            cells.append(f"<td class=n>{points(float(np.mean(values)) if values else None, digits=1)}</td>")
        body.append(f"<tr>{swatch(label, looks)}{''.join(cells)}</tr>")
    note = "S: updates until the ASR first falls below the threshold, mean over seeds; ≥ where on some seed it never did."
    return f"{table(head, [body])}<p class=note>{note}</p>"


def survived(rows: Sequence[Row], tau: str) -> str:
    """S_τ over seeds as text: each seed's where they differ, ≥ where censored; – without a trigger."""
    found = [(row[f"survived_{tau}"], row[f"survived_{tau}_censored"]) for row in rows if row.get(f"survived_{tau}") is not None]
    if not found:
        return "–"
    mean = float(np.mean([count for count, _ in found]))
    return ("≥ " if any(censored for _, censored in found) else "") + (f"{mean:.1f}" if len(found) > 1 else f"{found[0][0]}")
