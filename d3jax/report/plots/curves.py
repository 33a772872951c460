"""Training curves of models and repairs, with a panel per metric and a colour per defence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core.records import LogRecord
from .common import WIDTH, Mark, Palette, Panel, save_panels, style_of

Runs = Mapping[tuple[str, int], Sequence[LogRecord]]
"""The log records of one attack by (name of the run, seed), in order of their steps."""

Curve = tuple[str, np.ndarray]
"""The name of a run, and its steps and values as an array [2, T]."""


class Metric(NamedTuple):
    """A metric to plot: the first of `keys` that a log record has, times `scale`."""

    keys: tuple[str, ...]
    title: str
    unit: str
    scale: float = 1.0
    limits: tuple[float, float] | None = None


WATCHED = (
    Metric(("watch_acc",), "ACC on test images", "ACC (%)", 100.0),
    Metric(("watch_asr",), "ASR on test images", "ASR (%)", 100.0, (-3.0, 103.0)),
)
TRAINING = (
    Metric(("loss",), "Training loss", "loss (nats)"),
    Metric(("accuracy",), "Training accuracy", "accuracy (%)", 100.0),
    *WATCHED,
)
RATIO = Metric(
    ("distance_ratio",),
    "Distance of classifier from start",
    "‖W − W₀‖ / 2r",
    1.0,
    (-0.03, 1.03),
)
DISTANCE = Metric(("distance",), "Distance of classifier from start", "‖W − W₀‖")
REPAIR = (
    Metric(("clean_loss", "loss"), "Loss", "loss (nats)"),
    RATIO,
    DISTANCE,
    Metric(("cosine",), "Cosine of classifier to start", "cos ∠(W, W₀)", 1.0, (-1.06, 1.06)),
    *WATCHED,
)


def save_curves(path: Path, runs: Runs, metrics: Sequence[Metric], colours: Palette) -> Path | None:
    """Draw training curves: a panel for each metric that some run has, and a line for each seed."""
    found = {metric: curves for metric in metrics if (curves := curves_of(runs, metric))}
    if RATIO in found:
        found.pop(DISTANCE, None)  # it is the same curve without the scale
    columns = 2 if len(found) in (2, 4) else min(3, len(found))
    panels = [panel_of(metric, curves, colours) for metric, curves in found.items()]
    return save_panels(path, panels, columns, 2.45, WIDTH if columns > 1 else 5.0)


def curves_of(runs: Runs, metric: Metric) -> list[Curve]:
    """Return (name, [steps, values]) of each run whose log has a finite value of a metric."""
    found = {run: [_point(one, metric.keys) for one in records] for run, records in runs.items()}
    curves = [(name, np.asarray(points, np.float64).T) for (name, _), points in found.items()]
    known = [(name, curve[:, ~np.isnan(curve[2])][[0, 1]]) for name, curve in curves if curve.size]
    return [(name, curve) for name, curve in known if np.isfinite(curve[1]).any()]


def _point(record: LogRecord, keys: Sequence[str]) -> tuple[float, float, float]:
    """Return (step, value, 0) of a log record, or (step, NaN, NaN) if it has none of `keys`."""
    numbers = [record[key] for key in keys if isinstance(record.get(key), int | float)]
    value, there = (numbers[0], 0.0) if numbers else (np.nan, np.nan)
    return record["step"], value, there


def panel_of(metric: Metric, curves: Sequence[Curve], colours: Palette) -> Panel:
    """Return a `Panel` with the training curves of one metric, with one line per defence."""
    ends = [steps[-1] for _, (steps, _) in curves]
    # Next to a repair of 10 000 steps, one of 100 steps would be a vertical line. In that case the
    # x axis is the progress of each run.
    relative = min(ends) > 0 and max(ends) > 5 * min(ends)
    several = len({name for name, _ in curves}) < len(curves)
    marks = [
        _mark(
            [
                steps / steps[-1] * 100 if relative else steps
                for each, (steps, _) in curves
                if each == name
            ],
            [metric.scale * values for each, (_, values) in curves if each == name],
            style_of(name, colours) | {"alpha": 0.85, "linewidth": 0.9 if several else 1.5}
            | ({} if name == "none" else {"label": name}),
        )
        for name in dict.fromkeys(name for name, _ in curves)
    ]  # fmt: skip
    every = np.concatenate([values[np.isfinite(values)] for _, (_, values) in curves])
    wide = metric.unit.startswith("loss") and every.min() > 0 and every.max() > 50 * every.min()
    options = {
        "title": metric.title,
        "xlabel": "progress of each run (% of its steps)" if relative else "step",
        "ylabel": metric.unit,
        "yscale": "log" if wide else "linear",
        "ylim": metric.limits,
    }
    return Panel(marks, {name: value for name, value in options.items() if value})


def _mark(steps: Sequence[np.ndarray], values: Sequence[np.ndarray], style: dict[str, Any]) -> Mark:
    """Return one `Mark` with the curves of all seeds: a line with gaps, and a dot at each end.

    One line draws faster than several.
    """
    parted = [[np.append(one, np.nan) for one in all_seeds] for all_seeds in (steps, values)]
    ends = np.cumsum([len(one) + 1 for one in steps]) - 2
    dots = {"marker": "o", "markevery": ends.tolist(), "markersize": 2.8}
    return Mark(tuple(np.concatenate(one) for one in parted), style | dots)
