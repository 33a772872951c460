"""Training-time defences in the report: how clean and poisoned images were learned, and how well a filter told them apart. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .figures import BEFORE, WIDTH, Runs, drawing, plain_numbers
from .markup import escape, figure, table
from .report import points
from .rows import Row

CLEAN, POISONED = BEFORE, "#d55e00"
HUES = {"entropy": "#0072b2", "cross_entropy": "#d55e00", "symmetric": "#009e73", "mixture": "#cc79a7", "rescored": "#2a3138"}


class Filter(NamedTuple):
    """What a training-time defence found out about the images of which `flags` [N] says who is poisoned: `found`, arrays [N] by name.
    `curves` are precision and recall [N] of the lowest k of each score, `beginning` names the run of its first stage."""

    attack: str
    defense: str
    seed: int
    flags: np.ndarray
    found: Mapping[str, np.ndarray]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    beginning: str = ""


def show_filters(stem: Path, filters: Sequence[Filter], rows: Sequence[Row], runs: Runs) -> str:
    """For one attack: of each training-time defence under the first seed its first stage, its scores, and what they find.

    `rows` are the lines of filters.csv for this attack, `runs` its logged runs.
    """
    parts = []
    for one in filters:
        mine = [row for row in rows if row["defense"] == one.defense]
        name = Path(f"{stem}-{one.defense}")
        path = _save_learning(Path(f"{name}-learning.png"), runs.get((one.beginning, one.seed), []))
        text = "Its first stage on the poisoned set, by epoch: training images under the labels they were given, and test images."
        parts.append(figure(path, f"{one.defense}: how clean and poisoned images are learned", f"{one.defense}. {text}"))
        path = _save_scores(Path(f"{name}-scores.png"), one)
        text = (
            "Above: scores, each kind's histogram of its own. Below: of the images with the lowest scores, the share that is poisoned, "
            "and the share of the poisoned found. Rescored: after unlearning; its lowest keep their labels, so that no poison is to be there."
        )
        parts.append(figure(path, f"{one.defense}: scores of clean and poisoned images", f"{one.defense}. {text}"))
        parts.append(_table(mine))
    return "".join(parts)


def _save_learning(path: Path, records: Sequence[Mapping[str, float]]) -> Path | None:
    measured = [record for record in records if "clean_ce" in record]
    if not measured:
        return None
    at = np.arange(1, len(measured) + 1)
    panels = (
        ("ce", "Cross-entropy", 1, "nats"),
        ("entropy", "Entropy of the prediction", 1, "nats"),
        ("right", "Taken for the given label", 100, "images (%)"),
    )
    with drawing(path, (WIDTH, 2.5)) as picture:
        axes = picture.subplots(1, 4)
        for axis, (name, title, factor, unit) in zip(axes, panels, strict=False):
            for kind, colour in (("clean", CLEAN), ("poisoned", POISONED)):
                values = [factor * record.get(f"{kind}_{name}", np.nan) for record in measured]
                axis.plot(at, values, color=colour, marker="o", markersize=2.5, label=kind)
            axis.set(title=title, xlabel="epoch", ylabel=unit, ylim=(0, None))
        for name, label, colour in (("watch_acc", "ACC", CLEAN), ("watch_asr", "ASR", POISONED)):
            values = [100 * record.get(name, np.nan) for record in measured]
            axes[3].plot(at, values, color=colour, marker="o", markersize=2.5, linestyle="--", label=label)
        axes[3].set(title="Test images", xlabel="epoch", ylabel="share (%)", ylim=(-3, 103))
        axes[3].legend()
        for axis in axes:
            axis.xaxis.get_major_locator().set_params(integer=True)
        handles, names = axes[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside upper left", ncols=2)
    return path


def _save_scores(path: Path, one: Filter) -> Path:
    shown = [name for name in ("entropy", "cross_entropy", "rescored") if name in one.curves]
    with drawing(path, (WIDTH, 4.8)) as picture:
        grid = picture.add_gridspec(2, 6)
        for i, name in enumerate(shown):
            axis = picture.add_subplot(grid[0, 2 * i : 2 * i + 2])
            scores = one.found[name]
            finite = scores[np.isfinite(scores)]
            edges = np.linspace(0, max(float(np.quantile(finite, 0.99)), 1e-6), 40)
            for kind, mask, colour in (("clean", ~one.flags, CLEAN), ("poisoned", one.flags, POISONED)):
                if mask.any():
                    values = np.clip(scores[mask], 0, edges[-1])
                    axis.hist(
                        values, edges, weights=np.full(len(values), 100 / len(values)), color=colour, alpha=0.55, label=kind
                    )
            axis.set(title=name.replace("_", "-"), xlabel="score (nats)", ylabel="images (%)")
            axis.legend()
        share = 100 * np.arange(1, len(one.flags) + 1) / len(one.flags)
        for i, title in enumerate(("Precision", "Recall")):
            axis = picture.add_subplot(grid[1, 3 * i : 3 * i + 3])
            for name, curve in one.curves.items():
                axis.plot(share, 100 * curve[i], color=HUES[name], linewidth=1.3, label=name.replace("_", "-"))
            axis.axhline(100 * one.flags.mean(), color=CLEAN, linewidth=0.8, linestyle=":") if i == 0 else None
            axis.set(
                title=title, xlabel="images with the lowest scores (%)", ylabel="%", xlim=(0.1, 100), ylim=(-3, 103), xscale="log"
            )
            plain_numbers(axis.xaxis)
            axis.legend()
    return path


def _table(rows: Sequence[Row]) -> str:
    """How well each score finds the poison."""
    if not rows:
        return ""
    shares = [name.removeprefix("precision_") for name in rows[0] if name.startswith("precision_")]
    head = ["<th scope=col>Score</th><th scope=col class=n>AUROC</th>"]
    head += [f"<th scope=col class=n>Precision<small>of the lowest {100 * float(share):g} %</small></th>" for share in shares]
    body = []
    for row in rows:
        cells = [f"<td class=n>{'–' if row['auroc'] is None else format(row['auroc'], '.3f')}</td>"]
        cells += [f"<td class=n>{points(row[f'precision_{share}'], digits=1)}</td>" for share in shares]
        body.append(
            f"<tr><th scope=row>{escape(row['score'].replace('_', '-'))} <small>seed {row['seed']}</small></th>{''.join(cells)}</tr>"
        )
    note = "How well low scores find the poison: AUROC, and the share of the poisoned among the images with the lowest scores."
    return f"<figure>{table(head, [body])}<figcaption>{note}</figcaption></figure>"
