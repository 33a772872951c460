"""Training-time defences in the report: how clean and poisoned images were learned, and how well a filter told them apart. No jax."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...results.artifacts import Row
from ..html import Looks, escape, figure, table
from ..plots.curves import BEFORE, WIDTH, Runs, drawing, plain_numbers, short

CLEAN, POISONED = BEFORE, "#d55e00"
HUES = {
    "entropy": "#0072b2",
    "cross_entropy": "#d55e00",
    "symmetric": "#009e73",
    "mixture": "#cc79a7",
}
LOWEST = 1e-4
"""Scores below it are drawn as it."""


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


def show_filters(
    stem: Path,
    filters: Sequence[Filter],
    rows: Sequence[Row],
    ended: Sequence[Row],
    runs: Runs,
    looks: Looks,
) -> str:
    """For one attack: of each first stage, how it learned and what its scores find, and what the defences made of it.

    `filters` are those of one seed, tables are means over seeds: `rows` are the lines of filters.csv for this attack, `ended` its lines of
    results.csv, `runs` its logged runs, `looks` the colour and dash of every defence.
    """
    groups: dict[str, list[Filter]] = {}
    for one in filters:
        groups.setdefault(one.beginning, []).append(one)
    parts = []
    for group in groups.values():
        names, path = ", ".join(one.defense for one in group), f"{stem}-{group[0].defense}"
        learned = _save_learning(
            Path(f"{path}-learning.png"), runs.get((group[0].beginning, group[0].seed), [])
        )
        text = "The first stage on the poisoned set, about once an epoch: training images under the labels they were given, and test images."
        parts.append(
            figure(
                learned, f"{names}: how clean and poisoned images are learned", f"{names}. {text}"
            )
        )
        text = (
            f"Scores behind that first stage. Above: each kind's histogram of its own, in its first bin all that is below {LOWEST:g}. "
            "Below: of the images with the lowest scores, the share that is poisoned (dotted: of all images), and the share of the poisoned found; "
            "mixture ranks as cross-entropy does, and says besides how many are suspects."
        )
        scored = _save_scores(Path(f"{path}-scores.png"), group[0])
        parts.append(figure(scored, f"{names}: scores of clean and poisoned images", text))
        parts.append(
            _scores_table(
                [row for row in rows if row["defense"] == group[0].defense and row["score"] in HUES]
            )
        )
        text = "What stage 3 ranks by, behind unlearning where there is any: the lowest keep their labels, so that no poison is to be there."
        again = _save_rescored(
            Path(f"{path}-rescored.png"), [one for one in group if "rescored" in one.curves]
        )
        parts.append(figure(again, f"{names}: scores by which labels are kept", text))
        text = (
            "The same score as a filter for clean images, by how many of the lowest keep their labels: how many of them are clean (dotted: of all images), and how "
            "many of the clean are among them. A dot is what the defence kept, which is not the lowest alone where every class has its share."
        )
        kept = _save_kept(
            Path(f"{path}-kept.png"),
            [
                one
                for one in group
                if "rescored" in one.curves and one.flags.any() and not one.flags.all()
            ],
            looks,
        )
        parts.append(
            figure(kept, f"{names}: precision and recall of the labels that are kept", text)
        )
        parts.append(
            _choices_table([row for row in ended for one in group if row["defense"] == one.defense])
        )
    return "".join(parts)


def _save_learning(path: Path, records: Sequence[Mapping[str, float]]) -> Path | None:
    measured = [record for record in records if "clean_ce" in record]
    if not measured:
        return None
    at = [record["step"] for record in measured]
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
                if np.isfinite(values).any():
                    axis.plot(at, values, color=colour, marker="o", markersize=2.5, label=kind)
            axis.set(title=title, xlabel="step", ylabel=unit, ylim=(0, None))
        for name, label, colour in (("watch_acc", "ACC", CLEAN), ("watch_asr", "ASR", POISONED)):
            values = [100 * record.get(name, np.nan) for record in measured]
            if np.isfinite(values).any():
                axes[3].plot(
                    at,
                    values,
                    color=colour,
                    marker="o",
                    markersize=2.5,
                    linestyle="--",
                    label=label,
                )
        axes[3].set(title="Test images", xlabel="step", ylabel="share (%)", ylim=(-3, 103))
        axes[3].legend()
        for axis in axes:
            axis.xaxis.get_major_locator().set_params(integer=True, nbins=4)
        handles, names = axes[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside upper left", ncols=2)
    return path


def _save_scores(path: Path, one: Filter) -> Path:
    found = bool(one.flags.any())  # of a clean set the histograms say all
    with drawing(path, (WIDTH, 4.8 if found else 2.5)) as picture:
        grid = picture.add_gridspec(1 + found, 2)
        for i, name in enumerate(
            name for name in ("entropy", "cross_entropy") if name in one.curves
        ):
            axis = picture.add_subplot(grid[0, i])
            _histogram(axis, one.found[name], one.flags)
            axis.set(title=_plain(name), ylabel="images (%)")
            axis.legend()
        share = 100 * np.arange(1, len(one.flags) + 1) / len(one.flags)
        for i, title in enumerate(("Precision", "Recall") if found else ()):
            axis = picture.add_subplot(grid[1, i])
            for thin, (name, hue) in enumerate(HUES.items()):  # they often lie on one another
                if name in one.curves:
                    axis.plot(
                        share,
                        100 * one.curves[name][i],
                        color=hue,
                        linewidth=4 - thin,
                        label=_plain(name),
                    )
            axis.axhline(
                100 * one.flags.mean(), color=CLEAN, linewidth=0.8, linestyle=":"
            ) if i == 0 else None
            axis.set(
                title=title,
                xlabel="images with the lowest scores (%)",
                ylabel="%",
                xlim=(0.1, 100),
                ylim=(-3, 103),
                xscale="log",
            )
            plain_numbers(axis.xaxis)
            axis.legend()
    return path


def _save_rescored(path: Path, filters: Sequence[Filter]) -> Path | None:
    """A histogram for each of them."""
    if not filters:
        return None
    columns = min(4, len(filters))
    rows = -(-len(filters) // columns)
    with drawing(path, (WIDTH, 0.5 + 1.9 * rows)) as picture:
        axes = picture.subplots(rows, columns, squeeze=False).ravel()
        for axis, one in zip(axes, filters, strict=False):
            _histogram(axis, one.found["rescored"], one.flags)
            axis.set(title=short(one.defense, 30), ylabel="images (%)")
        for axis in axes[len(filters) :]:
            axis.set_visible(False)
        handles, names = axes[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside upper right", ncols=2)
    return path


def kept_clean(poisoned: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall [N] of clean images among the first k of a ranking, of which the share `poisoned` [N] is; some of all are clean."""
    clean = (1 - poisoned) * np.arange(1, len(flags) + 1)
    return 1 - poisoned, clean / np.sum(~flags)


def _save_kept(path: Path, filters: Sequence[Filter], looks: Looks) -> Path | None:
    """Precision and recall of clean images against the share of the images that keeps its labels, a line for each defence."""
    if not filters:
        return None
    with drawing(path, (WIDTH, max(2.8, 0.2 * len(filters)))) as picture:
        axes = picture.subplots(1, 2)
        for one in filters:
            hue, dash = looks[one.defense]
            clean, labelled = ~one.flags, one.found["labelled"]
            share = 100 * np.arange(1, len(clean) + 1) / len(clean)
            did = (clean[labelled].mean() if labelled.any() else np.nan, labelled[clean].mean())
            for axis, line, dot in zip(
                axes, kept_clean(one.curves["rescored"][0], one.flags), did, strict=True
            ):
                axis.plot(
                    share,
                    100 * line,
                    color=hue,
                    linestyle=dash,
                    linewidth=1.2,
                    label=short(one.defense, 30),
                )
                axis.plot(100 * labelled.mean(), 100 * dot, color=hue, marker="o", markersize=4)
        axes[0].axhline(
            100 * (1 - filters[0].flags.mean()), color=CLEAN, linewidth=0.8, linestyle=":"
        )
        for axis, title in zip(
            axes, ("Precision: clean of those kept", "Recall: kept of the clean"), strict=True
        ):
            axis.set(
                title=title, xlabel="images that keep their labels (%)", ylabel="%", xlim=(0, 100)
            )
        axes[1].set_ylim(-3, 103)
        handles, names = axes[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside right center")
    return path


def _histogram(axis: Any, scores: np.ndarray, flags: np.ndarray) -> None:
    """Of the scores of clean and of poisoned images, each adding up to 100 %."""
    top = max(float(scores[np.isfinite(scores)].max(initial=0)), 10 * LOWEST)
    least = max(LOWEST, float(np.min(scores, initial=top)) / 2)
    edges = np.geomspace(least, top, 40)
    for kind, mask, colour in (("clean", ~flags, CLEAN), ("poisoned", flags, POISONED)):
        if mask.any():
            values = np.clip(scores[mask].astype(np.float64), least, top)
            axis.hist(
                values,
                edges,
                weights=np.full(len(values), 100 / len(values)),
                color=colour,
                alpha=0.55,
                label=kind,
            )
    axis.set(xscale="log", xlabel="score (nats)")
    plain_numbers(axis.xaxis)


def _plain(name: str) -> str:
    return name.replace("_", "-")


def _scores_table(rows: Sequence[Row]) -> str:
    """How well each score of a first stage finds the poison."""
    shares = (
        [name.removeprefix("precision_") for name in rows[0] if name.startswith("precision_")]
        if rows
        else []
    )
    head = ["<th scope=col>Score</th><th scope=col class=n>AUROC</th>"]
    head += [
        f"<th scope=col class=n>Precision<small>of the lowest {100 * float(share):g} %</small></th>"
        for share in shares
    ]
    columns = {"auroc": (1, 3)} | {f"precision_{share}": (100, 1) for share in shares}
    note = "How well low scores find the poison: AUROC, and the share of the poisoned among the images with the lowest scores."
    return _means(head, rows, "score", columns, note)


def _choices_table(rows: Sequence[Row]) -> str:
    """Whom each defence suspected, and whose labels it kept."""
    head = ["<th scope=col>Defence</th><th scope=col class=n>Suspects<small>images</small></th>"]
    head += [
        f"<th scope=col class=n>Poisoned<small>of the {those}, %</small></th>"
        for those in ("suspects", "labelled")
    ]
    columns = {"suspects": (1, 0), "suspects_poisoned": (100, 1), "labelled_poisoned": (100, 2)}
    return _means(
        head,
        rows,
        "defense",
        columns,
        "Suspects are what a defence unlearns, if it does; labelled are the images that keep their labels. A share is a "
        "mean over the seeds that have any.",
    )


def _means(
    head: Sequence[str],
    rows: Sequence[Row],
    by: str,
    columns: Mapping[str, tuple[float, int]],
    note: str,
) -> str:
    """A table with a line for each value of `by`: means over seeds of `columns`, a factor and decimals each."""
    body = []
    for name in dict.fromkeys(row[by] for row in rows):
        line = f"<th scope=row>{escape(_plain(name))}</th>"
        for column, (factor, digits) in columns.items():
            there = [row[column] for row in rows if row[by] == name and row[column] is not None]
            line += f"<td class=n>{f'{factor * statistics.fmean(there):,.{digits}f}' if there else '–'}</td>"
        body.append(f"<tr>{line}</tr>")
    several = " Means over seeds." if len({row["seed"] for row in rows}) > 1 else ""
    return (
        f"<figure>{table(head, [body])}<figcaption>{note}{several}</figcaption></figure>"
        if body
        else ""
    )
