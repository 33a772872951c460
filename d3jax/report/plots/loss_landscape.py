"""Figures of the loss landscape: losses along lines and in planes, and changes of weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .common import (  # fmt: skip
    BEFORE,
    INK,
    POISONED,
    WIDTH,
    Arrays,
    Mark,
    Palette,
    Panel,
    drawing,
    save_panels,
    short,
    style_of,
)

CLEAN = "#0072b2"
DASHES = {"interpolated": "-", "estimated": (0, (4, 1.5))}
KINDS = (("clean", CLEAN, "acc"), ("backdoor", POISONED, "asr"))
T = "t: 0 backdoored, 1 repaired"
MOST = 8
"""Number of tensors in the figure of changes."""
LEVELS = [0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8]


def save_paths(path: Path, defenses: Sequence[str], arrays: Arrays) -> Path | None:
    """Draw losses, ACC and ASR along the line from the victim to each defence's repaired model."""
    panels = [panel for name in defenses for panel in _line(name, arrays)]
    return save_panels(path, panels, 2, 2.3)


def _line(name: str, arrays: Arrays) -> list[Panel]:
    """Return two panels for the line to one repaired model: losses, and rates (ACC and ASR).

    A net without BatchNorm has only the interpolated curves.
    """
    ts, at = arrays[f"{name}/ts"], {kind: f"{name}/{kind}" for kind in DASHES}
    there = [kind for kind in DASHES if f"{at[kind]}/acc" in arrays]
    losses = [
        Mark((ts, arrays[f"{at[how]}/{kind}_loss"]), {"color": hue, "linestyle": DASHES[how],
             "label": f"{kind}, {'statistics ' * (kind == 'clean')}{how}"})
        for how in there for kind, hue, _ in KINDS
    ]  # fmt: skip
    rates = [
        Mark((ts, 100 * arrays[f"{at[how]}/{rate}"]), {"color": hue, "linestyle": DASHES[how]})
        for how in there
        for _, hue, rate in KINDS
    ]
    guides = [Mark((t,), {"color": BEFORE, "lw": 0.8, "ls": ":"}, "axvline") for t in (0, 1)]
    top = min(8.0, 1.3 * np.nanmax([*arrays[f"{name}/interpolated/clean_loss"], 3.0]))
    options = {"title": f"{name}: loss", "xlabel": T, "ylabel": "nats", "ylim": (-0.1, top)}
    shares = {"title": "ACC and ASR", "xlabel": T, "ylabel": "share (%)", "ylim": (-3, 103)}
    return [Panel(losses + guides, options), Panel(rates + guides, shares)]


def save_plane(path: Path, names: Sequence[str], arrays: Arrays) -> Path:
    """Draw contours of the clean and the backdoor loss in the plane through three models."""
    box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
    label = {"xytext": (6, 6), "textcoords": "offset points", "fontsize": 8, "bbox": box}
    colours = {"levels": [0.02, *LEVELS, 20.1], "cmap": "viridis_r", "norm": "log"}
    axes = {"xlabel": f"distance towards {names[1]}", "ylabel": "distance from that line"}
    with drawing(path, (WIDTH, 3.9), layout="constrained") as figure:
        for axis, kind in zip(figure.subplots(1, 2), ("clean", "backdoor"), strict=True):
            at, shown = (
                (arrays["plane/xs"], arrays["plane/ys"]),
                arrays[f"plane/{kind}"].clip(0.02, 20),
            )
            filled = axis.contourf(*at, shown, **colours)
            figure.colorbar(filled, ax=axis, format="%g").ax.minorticks_off()
            axis.contour(*at, shown, levels=LEVELS, colors="white", linewidths=0.4)
            for place, name in zip(arrays["plane/places"], names, strict=True):
                axis.plot(*place, "o", color="white", markeredgecolor=INK, markersize=6)
                axis.annotate(name, place, color=INK, **label)
            axis.set(title=f"{kind.capitalize()} loss", **axes)
            axis.grid(False)
    return path


def save_taylor(
    path: Path, defenses: Sequence[str], arrays: Arrays, colours: Palette
) -> Path | None:
    """Draw the backdoor loss along the line to each repaired model, and its quadratic expansion."""
    panels = [_expansion(name, arrays, style_of(name, colours)["color"]) for name in defenses]
    return save_panels(path, panels, min(3, len(defenses)), 2.5)


def _expansion(name: str, arrays: Arrays, colour: str) -> Panel:
    ts, measured = arrays[f"{name}/ts"], arrays[f"{name}/first/backdoor_loss"]
    value, slope, curvature = arrays[f"{name}/taylor"]
    dashed = {"color": INK, "linestyle": "--", "linewidth": 1, "label": "quadratic"}
    return Panel(
        [
            Mark((ts, measured), {"color": colour, "label": "measured"}),
            Mark((ts, value + ts * slope + 0.5 * ts**2 * curvature), dashed),
        ],
        {
            "title": short(name, 26),
            "xlabel": "t",
            "ylabel": "backdoor loss (nats)",
            "ylim": (-0.2, min(8, 1.2 * np.nanmax(measured) + 0.5)),
        },
        legend="best",
    )


def save_changes(
    path: Path, defenses: Sequence[str], tensors: Sequence[str], arrays: Arrays, colours: Palette
) -> Path | None:
    """Draw histograms of the weight changes by each defence, for the most changed tensors.

    These are the tensors that changed most relative to their norm. All defences show the same
    tensors.
    """
    relative = np.stack([arrays[f"{name}/relative"] for name in defenses])
    most = np.max(np.where(np.isfinite(relative), relative, -1.0), axis=0)
    order = [row for row in np.argsort(-most, kind="stable") if most[row] >= 0][:MOST]
    panels = [
        Panel(
            [_histogram(name, row, arrays, style_of(name, colours)) for name in defenses],
            {
                "title": short(tensors[int(row)], 28),
                "xlabel": "change of a weight" if i >= len(order) - 4 else "",
                "ylabel": "" if i % 4 else "share of weights (%)",
                "yscale": "log",
            },
        )
        for i, row in enumerate(order)
    ]
    return save_panels(path, panels, 4, 2.05)


def _histogram(name: str, row: int, arrays: Arrays, style: dict[str, Any]) -> Mark:
    counts, edges = arrays[f"{name}/counts"][row], arrays["edges"][row]
    at, shares = (edges[1:] + edges[:-1]) / 2, 100 * counts / max(counts.sum(), 1)
    return Mark((at, shares), style | {"linewidth": 1, "label": name, "drawstyle": "steps-mid"})
