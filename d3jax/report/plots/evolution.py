"""Figures of evolution runs: rates over updates, learning rates, and predicted forgetting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.records import Row
from ...results.artifacts import EvolutionEntry
from .common import (  # fmt: skip
    BEFORE,
    INK,
    POISONED,
    Arrays,
    Mark,
    Palette,
    Panel,
    save_panels,
    short,
    style_of,
)

PANELS = {
    "acc": ("ACC", (0, 103)),
    "stale_acc": ("Stale ACC: model before the update", (0, 103)),
    "asr": ("ASR", (-3, 103)),
    "control": ("Control: ASR on the clean evolution run", (-3, 103)),
}
BANDED = 6
"""The largest number of evolution runs with bands; more bands would hide each other."""
CURVATURES = {
    "squared": ((0, (5, 2)), "squared loss"),
    "softmax": ((0, (1, 1.3)), "softmax at the start"),
}


def series(rows: Sequence[Row], evolution: str, name: str) -> tuple[np.ndarray, ...]:
    """Return a column of evolution.csv for one evolution: updates, mean and deviation over seeds.

    The deviation is the sample standard deviation, or 0 for a single seed.
    """
    values: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["update"]):
        if row["evolution"] == evolution and row[name] is not None:
            values.setdefault(row["update"], []).append(row[name])
    deviations = [np.std(one, ddof=len(one) > 1) for one in values.values()]
    means = [np.mean(one) for one in values.values()]
    return np.array(list(values)), np.array(means), np.array(deviations)


def save_rates(path: Path, rows: Sequence[Row], colours: Palette) -> Path | None:
    """Draw ACC, ASR and other rates of evolution.csv over the updates, a colour per evolution."""
    labels = list(dict.fromkeys(row["evolution"] for row in rows))
    banded = len(labels) <= BANDED
    panels = [
        Panel(
            [mark for one in labels for mark in _curve(rows, one, name, colours)[: 1 + banded]],
            {"title": title, "xlabel": "update", "ylabel": "share (%)", "ylim": limits},
            whole=True,
        )
        for name, (title, limits) in PANELS.items()
        if any(row[name] is not None for row in rows)
    ]
    return save_panels(path, panels, 2, 2.6)


def _curve(rows: Sequence[Row], evolution: str, name: str, colours: Palette) -> list[Mark]:
    """Return two marks for a column of evolution.csv: a line of means and a band of deviations."""
    at, mean, deviation = series(rows, evolution, name)
    line = style_of(evolution, colours) | {"linewidth": 1.5, "marker": "o", "markersize": 2.5}
    band = {"color": line["color"], "alpha": 0.15, "linewidth": 0}
    return [
        Mark((at, 100 * mean), line | {"label": evolution}),
        Mark((at, 100 * (mean - deviation), 100 * (mean + deviation)), band, "fill_between"),
    ]


def save_learning_rates(
    path: Path, evolutions: Sequence[EvolutionEntry], colours: Palette
) -> Path | None:
    """Draw the learning rate at every step of an update, with a panel per evolution run."""
    columns = min(4, len(evolutions))
    top = 1.05 * max((max(one.rates) for one in evolutions), default=0) or 1.0
    panels = [
        Panel(
            [
                Mark(
                    (range(1, len(one.rates) + 1), one.rates),
                    {"color": style_of(one.label, colours)["color"]},
                )
            ],
            {"title": short(one.label, 26), "xlabel": "step", "ylim": (0, top)}
            | ({} if i % columns else {"ylabel": "learning rate"}),
        )
        for i, one in enumerate(evolutions)
    ]  # fmt: skip
    return save_panels(path, panels, columns, 1.8)


def save_energy(path: Path, predicted: Mapping[str, Arrays]) -> Path | None:
    """Draw the cumulative energy of the trigger's direction over the eigenspaces of features.

    The figure shows the first run alone.
    """
    return save_panels(path, [_energy(found) for found in predicted.values()][:1], 1, 2.4)


def _energy(found: Arrays) -> Panel:
    values, at = found["eigenvalues"], np.maximum(found["eigenvalues"], 1e-9)
    own = {"color": BEFORE, "label": "features of the fresh images"}
    direction = {"color": POISONED, "label": "the trigger's direction"}
    options = {
        "title": "Energy in the eigenspaces of update 1",
        "xlabel": "eigenvalue of the second moment, large to small",
        "ylabel": "cumulative energy (%)",
        "xscale": "log",
        "xlim": (1.3 * at[0], at[-1] / 1.3),
        "ylim": (0, 103),
    }
    marks = [
        Mark((at, 100 * np.cumsum(found["shares"])), direction),
        Mark((at, 100 * np.cumsum(values / values.sum())), own),
    ]
    return Panel(marks, options, legend="lower right")


def save_forgetting(path: Path, predicted: Mapping[str, Arrays], colours: Palette) -> Path | None:
    """Draw the measured and predicted trigger score of each evolution run over the updates."""
    columns = min(4, len(predicted))
    panels = [
        _prediction(found, style_of(name, colours)["color"], {"title": short(name, 26)}
                    | ({} if i % columns else {"ylabel": "relative score"}))
        for i, (name, found) in enumerate(predicted.items())
    ]  # fmt: skip
    return save_panels(path, panels, columns, 2.1)


def _prediction(found: Arrays, colour: str, options: dict[str, Any]) -> Panel:
    measured = found["scores"] / (found["scores"][0] or 1.0)
    name = {"color": INK, "label": "measured (coloured)"}
    predicted = {kind: np.append(1.0, found[f"left/{kind}"]) for kind in CURVATURES}
    marks = [
        Mark((measured,), {"color": colour}),
        Mark(([], []), name),
        *(
            Mark(
                (np.where(np.abs(predicted[kind]) > 1.0, np.nan, predicted[kind]),),
                {"color": INK, "linestyle": dash, "linewidth": 1, "label": label},
            )
            for kind, (dash, label) in CURVATURES.items()
        ),
    ]
    top = 1.08 * float(np.max(measured[np.isfinite(measured)], initial=1.2))
    return Panel(marks, options | {"xlabel": "update", "ylim": (-0.3, top)}, whole=True)
