"""The report's pictures, as PNG files: curves of training and repair, bars per class, stamped images. No jax, no pyplot.

Every `save_*` draws one figure with matplotlib's Agg canvas and returns its path, or None, with no file written, where there
is nothing to draw. A defence has one colour in all of them (`palette`); "none", the backdoored model, is grey.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito's colour-blind safe hues without black and yellow (unreadable as a line on white), then darker ones of Tol.
HUES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#332288",
    "#882255",
    "#808000",
    "#7f4f24",
)
DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)))
BEFORE = "#6f7780"
PALE = "#cfd4d9"
INK = "#2a3138"
WIDTH = (
    9.6  # inches; at DPI this is what the page shows at 960 css pixels, sharp on a doubled screen
)
DPI = 160
NAMED = 20  # so many classes still have room for their names under the bars
STYLE = {
    "text.parse_math": False,  # class and attack names are the user's: "$x$" in them is no formula
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ab",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9eb",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}

Runs = dict[tuple[str, int], list[dict[str, Any]]]
"""The records of one attack by (what ran, seed), by rising step."""


class Panel(NamedTuple):
    """One pair of axes: of every record the first of `keys` that it has, times `scale`; `limits` are those of the y axis."""

    keys: tuple[str, ...]
    title: str
    unit: str
    scale: float = 1.0
    limits: tuple[float, float] | None = None


WATCHED = (
    Panel(("watch_acc",), "ACC, watched", "ACC (%)", 100.0),
    Panel(("watch_asr",), "ASR, watched", "ASR (%)", 100.0, (-3.0, 103.0)),
)
TRAINING = (
    Panel(("loss",), "Training loss", "loss (nats)"),
    Panel(("accuracy",), "Training accuracy", "accuracy (%)", 100.0),
    *WATCHED,
)
REPAIR = (
    Panel(("clean_loss", "loss"), "Loss", "loss (nats)"),
    Panel(("distance_ratio",), "Distance from the start", "‖W − W₀‖ / 2r", 1.0, (-0.03, 1.03)),
    Panel(("distance",), "Distance from the start", "‖W − W₀‖"),
    Panel(("cosine",), "Angle to the start", "cos ∠(W, W₀)", 1.0, (-1.06, 1.06)),
    *WATCHED,
)


def palette(defenses: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Colour and dash of every defence, in the order given; "none" is grey. After ten the hues repeat with other dashes."""
    others = [name for name in dict.fromkeys(defenses) if name != "none"]
    looks = {
        name: (HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {"none": (BEFORE, "-"), **looks}


def read_metrics(path: Path) -> dict[str, Runs]:
    """`metrics.jsonl` by attack; {} where there is no file.

    A stage is called "<attack>/seed<n>/<what>". Lines that are not whole JSON objects of such a stage are skipped (a run that
    was killed leaves half a line), and of a step logged twice (a run that was resumed) the later record counts.
    """
    stages: dict[str, dict[tuple[str, int], dict[float, dict[str, Any]]]] = {}
    if not path.exists():
        return {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int | float):
            continue
        if stage := re.fullmatch(r"(.+?)/seed(\d+)/(.+)", str(record.get("stage"))):
            attack, seed, what = stage.groups()
            stages.setdefault(attack, {}).setdefault((what, int(seed)), {})[record["step"]] = record
    return {
        attack: {run: [steps[step] for step in sorted(steps)] for run, steps in runs.items()}
        for attack, runs in stages.items()
    }


def save_curves(
    path: Path, runs: Runs, panels: Sequence[Panel], colours: Mapping[str, tuple[str, Any]]
) -> Path | None:
    """One panel for each of `panels` that some run has numbers for; a thin line for each seed, a colour for each defence."""
    drawn = [(panel, lines) for panel in panels if (lines := _lines(runs, panel))]
    if any(panel.keys == ("distance_ratio",) for panel, _ in drawn):
        drawn = [
            (panel, lines) for panel, lines in drawn if panel.keys != ("distance",)
        ]  # the same curve, without its scale
    if not drawn:
        return None
    columns = 2 if len(drawn) in (2, 4) else min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    names = list(dict.fromkeys(name for _, lines in drawn for name, _ in lines))
    with drawing(path, (WIDTH if columns > 1 else 5.0, 2.45 * rows + 0.35)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (panel, lines) in zip(axes, drawn, strict=False):
            _draw_curves(axis, panel, lines, colours)
        for axis in axes[len(drawn) :]:
            axis.set_axis_off()
        if names != ["train"]:
            _add_legend(figure, names, colours)
    return path


def save_classes(
    path: Path,
    classes: Sequence[str],
    per_class: Mapping[str, Mapping[str, np.ndarray]],
    colours: Mapping[str, tuple[str, Any]],
) -> Path | None:
    """ACC and ASR of every class: a row for each defence, its narrow bars in front of the wide grey ones of "none".

    `per_class[defense]["acc" or "asr"]` is a fraction for each class, nan where undefined (no bar).
    """
    names = [name for name in per_class if name != "none"] or list(per_class)
    kinds = [
        kind
        for kind in ("acc", "asr")
        if any(np.isfinite(rates.get(kind, np.nan)).any() for rates in per_class.values())
    ]
    if not kinds:
        return None
    before = per_class.get("none", {})
    foot = 0.95 if len(classes) <= NAMED else 0.5  # inches, for the class names
    size = (WIDTH, 1.25 * len(names) + foot)
    with drawing(path, size, layout="none") as figure:
        axes = figure.subplots(len(names), len(kinds), squeeze=False, sharex=True, sharey=True)
        figure.subplots_adjust(
            left=0.06,
            right=0.99,
            top=1 - 0.3 / size[1],
            bottom=foot / size[1],
            hspace=0.5,
            wspace=0.04,
        )
        for line, name in zip(axes, names, strict=True):
            for axis, kind in zip(line, kinds, strict=True):
                after = {} if name == "none" else per_class[name]
                for rates, width, colour in (
                    (before, 0.86, PALE),
                    (after, 0.46, _look(name, colours)[0]),
                ):
                    if kind in rates:
                        _draw_bars(axis, 100 * np.asarray(rates[kind]), width, colour)
                axis.set(
                    title=f"{kind.upper()} · {short(name, 40)}",
                    xlim=(-0.7, len(classes) - 0.3),
                    ylim=(0, 103),
                )
                axis.grid(False, axis="x")
                axis.tick_params(bottom=False)
            line[0].set(ylabel="share (%)", yticks=(0, 50, 100))
        for axis in axes[-1]:
            _name_classes(axis, classes)
    return path


def save_samples(
    path: Path, clean: np.ndarray, triggered: np.ndarray | None, *, label_share: float
) -> Path:
    """Images in columns: clean, triggered and ten times their absolute difference; pixels stay pixels.

    The row labels fill the left `label_share` of the width and the columns share the rest equally, so that a table of the same
    proportions can stand beneath.

    Args:
        clean: uint8 [n, H, W, C]; other than 1 or 3 channels are drawn as their mean.
        triggered: the same images, stamped; None where there is no trigger.
        label_share: a fraction of the width in (0, 1).
    """
    clean = drawable(clean)
    if triggered is None:
        return save_rows(path, {"clean": clean}, label_share=label_share)
    triggered = drawable(triggered)
    residual = np.clip(
        10 * np.abs(triggered.astype(np.int16) - clean.astype(np.int16)), 0, 255
    ).astype(np.uint8)
    return save_rows(
        path,
        {"clean": clean, "triggered": triggered, "residual ×10": residual},
        label_share=label_share,
    )


def drawable(images: np.ndarray) -> np.ndarray:
    """Images [n, H, W, C] with 1 or 3 channels; of other counts their mean."""
    return (
        images if images.shape[3] in (1, 3) else images.mean(-1, keepdims=True).astype(images.dtype)
    )


def save_rows(path: Path, rows: Mapping[str, np.ndarray], *, label_share: float) -> Path:
    """Rows of uint8 images [n, H, W, 1 or 3], each with its name to the left; pixels stay pixels."""
    zoom = max(
        1, 160 // next(iter(rows.values())).shape[1]
    )  # so that the white between images is finer than their pixels
    lines = [images.repeat(zoom, axis=1).repeat(zoom, axis=2) for images in rows.values()]
    count, height, width = lines[0].shape[:3]
    gap = max(1, round(0.04 * height))
    lines = [
        np.pad(images, ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=255)
        for images in lines
    ]
    picture = np.concatenate([np.concatenate(list(line), axis=1) for line in lines])
    cell = 1.05  # inches
    size = (
        count * cell / (1 - label_share),
        len(rows) * cell * (height + 2 * gap) / (width + 2 * gap),
    )
    with drawing(path, size, layout="none") as figure:
        axis = figure.add_axes((label_share, 0, 1 - label_share, 1))
        axis.imshow(np.broadcast_to(picture, (*picture.shape[:2], 3)), aspect="auto")
        axis.set_axis_off()
        for i, label in enumerate(rows):
            figure.text(
                label_share - 0.09 / size[0],
                1 - (i + 0.5) / len(rows),
                label,
                ha="right",
                va="center",
                fontsize=9.5,
            )
    return path


@contextlib.contextmanager
def drawing(path: Path, size: tuple[float, float], layout: Any = "constrained") -> Iterator[Any]:
    """A white figure of `size` inches that is saved to `path` at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A class may be called 猫: a box in the picture, the name in the page's text, and no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")


def plain_numbers(axis: Any) -> None:
    """A logarithmic x or y axis with 0.01 and not 10⁻², which comes as a formula, and those are off."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def _lines(runs: Runs, panel: Panel) -> list[tuple[str, np.ndarray]]:
    """(name, [2, T] steps and values) of every run with at least one finite number for the panel."""
    lines = []
    for (name, _), records in runs.items():
        found = [
            (r["step"], [r[key] for key in panel.keys if isinstance(r.get(key), int | float)])
            for r in records
        ]
        points = [(step, values[0]) for step, values in found if values]
        if any(math.isfinite(value) for _, value in points):
            lines.append((name, np.asarray(points, np.float64).T))
    return lines


def _draw_curves(
    axis: Any,
    panel: Panel,
    lines: list[tuple[str, np.ndarray]],
    colours: Mapping[str, tuple[str, Any]],
) -> None:
    spans = [steps[-1] for _, (steps, _) in lines]
    # A repair of 100 steps beside one of 10 000 would be a vertical stroke: then each runs over its own length.
    relative = min(spans) > 0 and max(spans) > 5 * min(spans)
    several = len({name for name, _ in lines}) < len(lines)
    for name, (steps, values) in lines:
        colour, dash = _look(name, colours)
        at = 100 * steps / steps[-1] if relative else steps
        axis.plot(
            at,
            panel.scale * values,
            color=colour,
            linestyle=dash,
            linewidth=0.9 if several else 1.5,
            alpha=0.85,
        )
        axis.plot(at[-1:], panel.scale * values[-1:], "o", color=colour, markersize=2.8)
    every = np.concatenate([values[np.isfinite(values)] for _, (_, values) in lines])
    if panel.unit.startswith("loss") and every.min() > 0 and every.max() > 50 * every.min():
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
    axis.set(
        title=panel.title,
        ylabel=panel.unit,
        xlabel="progress of each run (% of its steps)" if relative else "step",
    )
    if panel.limits:
        axis.set_ylim(*panel.limits)


def _draw_bars(axis: Any, heights: np.ndarray, width: float, colour: str) -> None:
    """Bars as one collection: `axis.bar` makes an object a bar, ten seconds' worth for ten defences on a hundred classes."""
    from matplotlib.collections import PolyCollection

    at = np.flatnonzero(np.isfinite(heights))
    left, right, top = at - width / 2, at + width / 2, heights[at]
    corners = np.stack([left, 0 * top, left, top, right, top, right, 0 * top], axis=1).reshape(
        -1, 4, 2
    )
    axis.add_collection(PolyCollection(corners, facecolors=colour, linewidths=0))


def _look(name: str, colours: Mapping[str, tuple[str, Any]]) -> tuple[str, Any]:
    """The look of a defence; a part of one ("abl/isolate") shares it, and what is no defence ("train") is grey."""
    return colours.get(name) or colours.get(name.split("/")[0]) or (BEFORE, "-")


def _add_legend(figure: Any, names: Sequence[str], colours: Mapping[str, tuple[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    looks = [_look(name, colours) for name in names]
    lines = [Line2D([], [], color=colour, linestyle=dash) for colour, dash in looks]
    labels = [short(name, 30) for name in names]
    figure.legend(
        lines,
        labels,
        loc="outside upper left",
        ncols=columns_of(labels),
        handlelength=1.8,
        columnspacing=1.4,
    )


def _name_classes(axis: Any, classes: Sequence[str]) -> None:
    """Class names under the bars while they can be read, some of their numbers where there are too many."""
    if len(classes) <= NAMED:
        names = [short(name, 14) for name in classes]
        axis.set_xticks(
            range(len(classes)), names, rotation=40, ha="right", rotation_mode="reference_params"
        )
        axis.set_xlabel("true class")
    else:
        axis.set_xticks(range(0, len(classes), 10 ** (len(str(len(classes))) - 2)))
        axis.set_xlabel("true class (its number)")


def short(name: str, limit: int) -> str:
    """At most `limit` characters of a name: its beginning, and its end, in which those of a sweep differ."""
    end = limit // 2
    return name if len(name) <= limit else f"{name[: limit - 1 - end]}…{name[-end:]}"


def columns_of(names: Sequence[str]) -> int:
    """How many columns a legend over the whole width has for such names."""
    longest = max(map(len, names), default=1)
    return max(1, min(6, len(names), int(WIDTH * 15 / (longest + 7))))
