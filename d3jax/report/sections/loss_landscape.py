"""Lines and planes between models in the report: why fine-tuning fails, as pictures. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...results.summary import points
from ..html import Looks, escape, figure, table
from ..plots.curves import BEFORE, INK, WIDTH, columns_of, drawing, plain_numbers, short

CLEAN, POISONED = "#0072b2", "#d55e00"
DASHES = {"interpolated": "-", "estimated": (0, (4, 1.5))}
MOST = 8


class LineTo(NamedTuple):
    """The line from the backdoored model (t = 0) through what a defence made of it (1), at `ts` [T]: `losses` by the treatment of
    BatchNorm's statistics, each the four arrays of `analysis.path.Losses`; the backdoor loss to second order (`value`, `slope`,
    `curvature`); and `changes` of the tensors."""

    defense: str
    ts: np.ndarray
    losses: Mapping[str, Any]
    taylor: tuple[float, float, float]
    changes: Mapping[str, Mapping[str, Any]]


class PlaneOf(NamedTuple):
    """The plane through the backdoored model and what two defences made of it: `names` [3], `places` [3, 2], the grid `xs`, `ys`, and
    clean and backdoor loss on it [len(ys), len(xs)]."""

    names: Sequence[str]
    places: np.ndarray
    xs: np.ndarray
    ys: np.ndarray
    clean: np.ndarray
    backdoor: np.ndarray


class Lines(NamedTuple):
    """What was found between the models of one attack; `eigenvalues` are the largest of the backdoor loss's Hessian at the backdoored
    model."""

    attack: str
    paths: Sequence[LineTo]
    plane: PlaneOf | None
    eigenvalues: np.ndarray


def show_paths(stem: Path, lines: Lines, looks: Looks) -> str:
    """Pictures and numbers of an attack's lines and plane."""
    parts = [
        figure(
            _save_paths(Path(f"{stem}-path.png"), lines),
            "Losses along the line to each defence's model",
            PATH,
        )
    ]
    if lines.plane:
        parts.append(
            figure(
                _save_plane(Path(f"{stem}-plane.png"), lines.plane),
                "Losses in the plane of three models",
                PLANE,
            )
        )
    parts.append(
        figure(
            _save_taylor(Path(f"{stem}-taylor.png"), lines, looks),
            "The backdoor loss to second order",
            _second(lines),
        )
    )
    parts.append(
        figure(
            _save_changes(Path(f"{stem}-changes.png"), lines, looks),
            "How the weights changed",
            CHANGES,
        )
    )
    return "".join(parts) + _table(lines)


def _save_paths(path: Path, lines: Lines) -> Path:
    count = len(lines.paths)
    with drawing(path, (WIDTH, 2.3 * count + 0.3)) as picture:
        axes = picture.subplots(count, 2, squeeze=False)
        for (loss, rate), one in zip(axes, lines.paths, strict=True):
            for name, dash in DASHES.items():
                if name not in one.losses:  # a net without BatchNorm has one line
                    continue
                found = one.losses[name]
                loss.plot(
                    one.ts,
                    found.clean_loss,
                    color=CLEAN,
                    linestyle=dash,
                    label=f"clean, statistics {name}",
                )
                loss.plot(
                    one.ts,
                    found.backdoor_loss,
                    color=POISONED,
                    linestyle=dash,
                    label=f"backdoor, {name}",
                )
                rate.plot(one.ts, 100 * found.acc, color=CLEAN, linestyle=dash)
                rate.plot(one.ts, 100 * found.asr, color=POISONED, linestyle=dash)
            for axis in (loss, rate):
                for at in (0, 1):
                    axis.axvline(at, color=BEFORE, linewidth=0.8, linestyle=":")
                axis.set(xlabel="t: 0 backdoored, 1 repaired")
            top = np.nanmax([*one.losses["interpolated"].clean_loss, 3.0])
            loss.set(title=f"{one.defense}: loss", ylabel="nats", ylim=(-0.1, min(8.0, 1.3 * top)))
            rate.set(title="ACC and ASR", ylabel="share (%)", ylim=(-3, 103))
        handles, names = axes[0][0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside upper left", ncols=4, handlelength=2)
    return path


def _save_plane(path: Path, plane: PlaneOf) -> Path:
    with drawing(path, (WIDTH, 3.9)) as picture:
        axes = picture.subplots(1, 2)
        for axis, values, title in (
            (axes[0], plane.clean, "Clean loss"),
            (axes[1], plane.backdoor, "Backdoor loss"),
        ):
            levels = [0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8]
            shown = np.clip(values, 0.02, 20)
            filled = axis.contourf(
                plane.xs,
                plane.ys,
                shown,
                levels=[0.02, *levels, 20.1],
                cmap="viridis_r",
                norm="log",
            )
            axis.contour(plane.xs, plane.ys, shown, levels=levels, colors="white", linewidths=0.4)
            bar = picture.colorbar(filled, ax=axis, format=lambda value, _: f"{value:g}")
            bar.ax.minorticks_off()
            for (x, y), name in zip(plane.places, plane.names, strict=True):
                axis.plot(x, y, "o", color="white", markeredgecolor=INK, markersize=6)
                axis.annotate(name, (x, y), xytext=(6, 6), textcoords="offset points", color=INK, fontsize=8,
                              bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5})  # fmt: skip
            axis.set(
                title=title,
                xlabel=f"distance towards {plane.names[1]}",
                ylabel="distance from that line",
            )
            axis.grid(False)
    return path


def _save_taylor(path: Path, lines: Lines, looks: Looks) -> Path:
    count = len(lines.paths)
    columns = min(3, count)
    with drawing(path, (WIDTH, 2.5 * -(-count // columns))) as picture:
        axes = picture.subplots(-(-count // columns), columns, squeeze=False).flatten()
        for axis, one in zip(axes, lines.paths, strict=False):
            measured = one.losses["first"].backdoor_loss
            value, slope, curvature = one.taylor
            axis.plot(
                one.ts, measured, color=looks.get(one.defense, (POISONED, "-"))[0], label="measured"
            )
            axis.plot(
                one.ts,
                value + one.ts * slope + 0.5 * one.ts**2 * curvature,
                color=INK,
                linestyle="--",
                linewidth=1,
                label="quadratic",
            )
            axis.set(
                title=short(one.defense, 26),
                xlabel="t",
                ylabel="backdoor loss (nats)",
                ylim=(-0.2, min(8, 1.2 * np.nanmax(measured) + 0.5)),
            )
            axis.legend()
        for axis in axes[count:]:
            axis.set_axis_off()
    return path


def _save_changes(path: Path, lines: Lines, looks: Looks) -> Path:
    """Histograms of the tensors that changed most, relative to their length, the same tensors for all defences."""
    total: dict[str, float] = {}
    for one in lines.paths:
        for name, found in one.changes.items():
            if np.isfinite(found["relative"]):
                total[name] = max(total.get(name, 0.0), found["relative"])
    names = sorted(total, key=total.__getitem__, reverse=True)[:MOST]
    with drawing(path, (WIDTH, 4.4)) as picture:
        axes = picture.subplots(2, 4)
        for axis, name in zip(axes.flat, names, strict=False):
            for one in lines.paths:
                found = one.changes[name]
                share = 100 * found["counts"] / max(found["counts"].sum(), 1)
                middle = (found["edges"][1:] + found["edges"][:-1]) / 2
                colour, dash = looks.get(one.defense, (BEFORE, "-"))
                axis.step(
                    middle,
                    share,
                    where="mid",
                    color=colour,
                    linestyle=dash,
                    linewidth=1,
                    label=one.defense,
                )
            axis.set_yscale("log")
            axis.set_title(short(name, 32), fontsize=8)
            plain_numbers(axis.yaxis)
            axis.tick_params(labelsize=7)
        for axis in axes.flat[len(names) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("share of weights (%)", fontsize=8)
        for axis in axes.flat[max(0, len(names) - 4) : len(names)]:
            axis.set_xlabel("change of a weight", fontsize=8)
        handles, labels = axes[0][0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper left", ncols=columns_of(labels))
    return path


def _second(lines: Lines) -> str:
    top = ", ".join(f"{value:.3g}" for value in lines.eigenvalues)
    return (
        "The backdoor loss along the line, and L + gᵀΔ t + ½ ΔᵀHΔ t² from gradient and Hessian at the backdoored model, whose BatchNorm "
        f"statistics both have all along. Largest eigenvalues of the Hessian: {top}."
    )


def _table(lines: Lines) -> str:
    head = ["<th scope=col>LogRecord to</th>"]
    for name, small in (("Loss", "clean, t = 1"), ("Loss", "backdoor, t = 1"), ("ASR", "t = 1"), ("ASR", "least for t > 1"),
                        ("ACC there", "change from t = 1"), ("gᵀΔ", ""), ("½ΔᵀHΔ", "")):  # fmt: skip
        head.append(f"<th scope=col class=n>{name}<small>{small}</small></th>")
    body = []
    for one in lines.paths:
        found, at = one.losses["interpolated"], int(np.argmin(np.abs(one.ts - 1)))
        further, beyond = one.losses.get("estimated", found), np.flatnonzero(one.ts > 1)
        least = beyond[np.argmin(further.asr[beyond])] if len(beyond) else at
        cells = [f"{found.clean_loss[at]:.3f}", f"{found.backdoor_loss[at]:.3f}", points(found.asr[at], digits=1),
                 f"{points(further.asr[least], digits=1)} <small>t = {one.ts[least]:g}</small>",
                 points(further.acc[least] - further.acc[at], sign=True, digits=1) or "0.0", f"{one.taylor[1]:.3g}", f"{one.taylor[2] / 2:.3g}"]  # fmt: skip
        body.append(
            f"<tr><th scope=row>{escape(one.defense)}</th>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
        )
    note = "What is least beyond t = 1 has its statistics estimated, where the net has BatchNorm. Losses are cross-entropies of test images: clean ones under their labels, triggered ones under the attacker's class."
    return f"<figure>{table(head, [body], 'glance')}<figcaption>{note}</figcaption></figure>"


PATH = (
    "On the line from the backdoored model (t = 0) through the repaired one (t = 1) and beyond, first seed. Clean loss: of clean test images; backdoor loss: of triggered "
    "ones under the attacker's class, low where the backdoor works. BatchNorm's statistics, where the net has it, are interpolated with the weights, or estimated anew from the reserved images (dashed). All points are in paths.csv."
)
PLANE = (
    "The plane through the backdoored model and two repaired ones, in Euclidean distances of parameters; the axes differ in scale. Where both "
    "losses are low is the backdoor region."
)
CHANGES = (
    "Changes of single weights, for the tensors that changed most for their length; shares on a logarithmic axis. A tensor's bins are the same "
    "for all defences; the outermost also hold what lies beyond them. How far every tensor moved is in changes.csv."
)
