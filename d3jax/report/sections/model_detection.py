"""What was found out of a model, as pictures and HTML for the report: inverted triggers and features. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..html import Looks, figure, swatch, table
from ..plots.curves import BEFORE, INK, PALE, WIDTH, drawable, drawing, save_rows, short

MOST = 16
"""Classes in a picture of inverted triggers: those with the smallest."""
FLAGGED = "#d55e00"


class Inverted(NamedTuple):
    """A detection by inversion with the images of `seed`: of `labels` [L] the `norms`, which are `flagged`, the `index` and `success` of each, and `triggers`
    uint8 [L, H, W, C] on grey. `median` and `spread` are those of the norms, `targets` the attacker's classes, and `smallest` the
    report's images with the smallest trigger."""

    detection: str
    seed: int
    labels: np.ndarray
    norms: np.ndarray
    flagged: np.ndarray
    index: np.ndarray
    success: np.ndarray
    median: float
    spread: float
    targets: set[int]
    triggers: np.ndarray
    smallest: np.ndarray


class Features(NamedTuple):
    """Features as `points` [N + M, 2] by "pca" and "tsne": N clean images of classes `labels` [N], then M triggered ones; and the
    numbers of `analysis.separation`."""

    points: dict[str, np.ndarray]
    labels: np.ndarray
    separation: dict[str, float]


def show_inversions(
    stem: Path,
    clean: np.ndarray,
    triggered: np.ndarray,
    found: Sequence[Inverted],
    classes: Sequence[str],
) -> str:
    """For every detection the norms of all classes with their triggers, and the smallest beside the attacker's."""
    parts = []
    for one in found:
        path = _save_norms(Path(f"{stem}-{one.detection}.png"), one, classes)
        parts.append(
            figure(
                path,
                f"Inverted triggers and their norms, {one.detection}",
                _norms_text(one, classes),
            )
        )
        pairs = ({"attacker's": triggered} if one.targets else {}) | {"inverted": one.smallest}
        rows = {name: drawable(images) for name, images in ({"clean": clean} | pairs).items()}
        for name, images in pairs.items():
            change = np.abs(drawable(images).astype(np.int16) - drawable(clean).astype(np.int16))
            rows[f"{name}: change"] = change.astype(np.uint8)
        path = save_rows(Path(f"{stem}-{one.detection}-triggers.png"), rows, label_share=0.17)
        label = classes[int(one.labels[one.norms.argmin()])]
        lead = "The attacker's trigger and the" if one.targets else "The"
        text = (
            f"{lead} smallest inverted one ({one.detection}, seed {one.seed}; it "
            f"leads to {label}) on the same images. An inverted trigger need not look like the attacker's, nor sit in its place."
        )
        parts.append(figure(path, "The attacker's trigger and the inverted one", text))
    return "".join(parts)


def _norms_text(one: Inverted, classes: Sequence[str]) -> str:
    name = lambda i: (
        f"{classes[int(one.labels[i])]} (norm {one.norms[i]:.1f}, index {one.index[i]:.2f})"
    )
    flagged = np.flatnonzero(one.flagged)
    shown = (
        f"the {MOST} smallest of {len(one.labels)} classes"
        if len(one.labels) > MOST
        else "each class"
    )
    text = f"{one.detection}, seed {one.seed}: the smallest trigger that was found for {shown} and its norm. "
    if len(flagged):
        text += f"Flagged: {', '.join(name(i) for i in flagged)}."
    else:
        text += f"None is flagged; the smallest is that of {name(int(one.norms.argmin()))}."
    if one.targets:
        text += f" In truth (★) the target is {', '.join(classes[label] for label in sorted(one.targets))}."
    weak = [
        classes[int(label)]
        for label, success in zip(one.labels, one.success, strict=True)
        if success < 0.5
    ]
    return text + (
        f" These turn under half of the images, so their norms say little: {', '.join(weak)}."
        if weak
        else ""
    )


def _save_norms(path: Path, one: Inverted, classes: Sequence[str]) -> Path:
    """Bars of the norms, the threshold (median − 2 spreads) as a line, and under each bar its trigger."""
    order = np.sort(one.norms.argsort(kind="stable")[:MOST])
    count, (height, width) = len(order), one.triggers.shape[1:3]
    left, right = 0.07, 0.995
    cell = (right - left) * WIDTH / count  # inches
    strip, bars, names = min(cell, 1.0) * height / width, 1.9, 0.55
    size = (WIDTH, strip + bars + names + 0.35)
    with drawing(path, size, layout="none") as picture:
        axis = picture.add_axes((left, (strip + names) / size[1], right - left, bars / size[1]))
        colours = [FLAGGED if flagged else BEFORE for flagged in one.flagged[order]]
        axis.bar(range(count), one.norms[order], width=0.62, color=colours)
        for level, text in ((one.median, "median"), (one.median - 2 * one.spread, "threshold")):
            if level > 0:
                axis.axhline(
                    level,
                    color=INK,
                    linewidth=0.9,
                    linestyle="-" if text == "median" else (0, (4, 2)),
                )
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axis.text(
                    count - 0.51, level, text, ha="right", va="center", fontsize=7.5, bbox=box
                )
        axis.set(
            xlim=(-0.5, count - 0.5),
            ylabel="norm of the trigger",
            title=f"Smallest triggers · {one.detection}, seed {one.seed}",
        )
        labels = [
            classes[int(one.labels[i])] + (" ★" if int(one.labels[i]) in one.targets else "")
            for i in order
        ]
        axis.set_xticks(
            range(count), [text[:13] for text in labels], rotation=0 if count <= 10 else 30
        )
        axis.grid(False, axis="x")
        axis.tick_params(bottom=False)
        for place, i in enumerate(order):
            side = min(cell, 1.0) * 0.9
            x = left * WIDTH + (place + 0.5) * cell - side / 2
            inset = picture.add_axes(
                (x / WIDTH, 0.05 / size[1], side / WIDTH, side * height / width / size[1])
            )
            inset.imshow(
                np.broadcast_to(drawable(one.triggers[i : i + 1])[0], (height, width, 3)),
                interpolation="nearest",
            )
            inset.set_axis_off()
    return path


def show_features(
    stem: Path,
    features: Mapping[str, Features],
    classes: Sequence[str],
    looks: Looks,
    which: str = "triggered",
) -> str:
    """PCA and t-SNE of every model's features, and how far the triggered lie from where they belong; `which` says what those are."""
    if not features:
        return ""
    path = _save_features(Path(f"{stem}-features.png"), features, classes)
    text = (
        f"Penultimate features of test images, clean in the colours of their classes and {which} in black: PCA above, t-SNE below, "
        "each model on its own. Distances in a t-SNE picture mean little; the table has those of the features themselves."
    )
    parts = [figure(path, f"Features of images, clean and {which}", text)]
    if any(np.isfinite(one.separation["twin_distance"]) for one in features.values()):
        head = [
            "<th scope=col>Model</th><th scope=col class=n>Distance to clean twin<small>lower is better</small></th>"
        ]
        head += ["<th scope=col class=n>Silhouette<small>lower is better</small></th>"]
        numbers = lambda one: (
            f"{one.separation[key]:.3f}".replace("-", "−")
            for key in ("twin_distance", "silhouette")
        )
        body = [
            f"<tr>{swatch(name, looks)}{''.join(f'<td class=n>{number}</td>' for number in numbers(one))}</tr>"
            for name, one in features.items()
        ]
        note = (
            "Distance: of a triggered image's features to those of its clean twin, over the mean distance of two clean images. "
            "Silhouette: of the triggered images as a cluster beside the clean classes; below 0 they lie in the classes."
        )
        parts.append(f"{table(head, [body])}<p class=note>{note}</p>")
    return "".join(parts)


def _save_features(path: Path, features: Mapping[str, Features], classes: Sequence[str]) -> Path:
    import matplotlib

    columns = len(features)
    shades = matplotlib.colormaps["tab20" if len(classes) > 10 else "tab10"]
    with drawing(path, (max(WIDTH, 2.3 * columns), 5.1)) as picture:
        axes = picture.subplots(2, columns, squeeze=False)
        for column, (name, one) in zip(axes.T, features.items(), strict=True):
            count = len(one.labels)
            for axis, method in zip(column, ("pca", "tsne"), strict=True):
                at = one.points[method]
                axis.scatter(
                    *at[:count].T,
                    c=[shades(int(label) % shades.N) for label in one.labels],
                    s=5,
                    alpha=0.7,
                    linewidths=0,
                )
                axis.scatter(*at[count:].T, c="black", s=6, marker="x", linewidths=0.6)
                axis.set(
                    xticks=[],
                    yticks=[],
                    title=f"{short(name, 22)} · {'PCA' if method == 'pca' else 't-SNE'}",
                )
                axis.grid(False)
                for side in axis.spines.values():
                    side.set(visible=True, color=PALE)
    return path
