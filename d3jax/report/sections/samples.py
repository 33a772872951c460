"""What was measured of one attack in the report: images, classes, inverted triggers, features, curves. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..html import Looks, drawn, escape, figure, image, swatch, table
from ..plots import curves as figures
from .model_detection import Features, Inverted, show_features, show_inversions

SHOWN = 8
"""Images in the grid."""


class Samples(NamedTuple):
    """Test images of one attack and seed with what every model said of them, for the page.

    `clean` and `triggered` are uint8 [n, H, W, C], `labels` int [n] the true classes. `predictions[defense]` holds the classes
    [n] predicted for the clean and for the triggered images, `per_class[defense]` the fractions [K] "acc" and "asr" by true
    class, nan where undefined; "none" is the backdoored model in both. `targets` int [n] is the class the attacker wants for
    each image; without it the one class that has no ASR under "none" is taken for the target of all. `likeness` has the trigger's
    `psnr` (dB), `ssim` and `largest` change (8-bit levels). `inverted` holds what detections found, `features` those of every model;
    with `inverted_twins` those of images with the inverted trigger.
    """

    attack: str
    seed: int
    clean: np.ndarray
    triggered: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    predictions: dict[str, tuple[np.ndarray, np.ndarray]]
    per_class: dict[str, dict[str, np.ndarray]]
    targets: np.ndarray | None = None
    likeness: dict[str, float] | None = None
    inverted: Sequence[Inverted] = ()
    features: Mapping[str, Features] = {}
    inverted_twins: bool = False


def show_attack(
    stem: Path, attack: str, samples: Sequence[Samples], runs: figures.Runs, looks: Looks
) -> str:
    """The samples, bars and curves of one attack; "" where there are none."""
    sections = [partial(_curves, stem, attack, runs, looks)]
    if samples:
        first, features = samples[0], samples[0].features
        sections[:0] = [
            partial(_sample_table, Path(f"{stem}-samples.png"), first, looks),
            partial(_class_bars, Path(f"{stem}-classes.png"), attack, samples, looks),
            partial(
                show_inversions, stem, first.clean, first.triggered, first.inverted, first.classes
            ),
            partial(
                show_features,
                stem,
                features,
                first.classes,
                looks,
                "with the inverted trigger" if first.inverted_twins else "triggered",
            ),
        ]
    return "".join(drawn(section) for section in sections)


def _class_bars(path: Path, attack: str, samples: Sequence[Samples], looks: Looks) -> str:
    over = f"mean over {len(samples)} seeds" if len(samples) > 1 else f"seed {samples[0].seed}"
    rates = _mean_per_class(samples)
    path = figures.save_classes(path, samples[0].classes, rates, looks)
    triggered = any(np.isfinite(one.get("asr", np.nan)).any() for one in rates.values())
    what, note = ("ACC and ASR", " The target class has no ASR.") if triggered else ("ACC", "")
    text = f"{what} by true class ({over}). Wide grey bars: before; narrow bars: after.{note}"
    return figure(path, f"{what} by true class under {attack}", text)


def _curves(stem: Path, attack: str, runs: figures.Runs, looks: Looks) -> str:
    seeds = len({seed for _, seed in runs})
    thin = f" One line for each of {seeds} seeds." if seeds > 1 else ""
    training = {run: records for run, records in runs.items() if run[0] == "train"}
    path = figures.save_curves(Path(f"{stem}-training.png"), training, figures.TRAINING, looks)
    parts = [
        figure(
            path,
            f"Training curves under {attack}",
            f"Training the model that the rest begins with.{thin}",
        )
    ]
    repair = {run: records for run, records in runs.items() if run[0] != "train"}
    path = figures.save_curves(Path(f"{stem}-defenses.png"), repair, figures.REPAIR, looks)
    text = f"The defences at work.{thin} The loss is that on clean or labelled images where a defence logs it apart, the suspects' where they are unlearned, else what it minimises; stages follow each other, trials, which are thrown away, among them."
    watched = any(
        "watch_asr" in record or "watch_acc" in record
        for records in repair.values()
        for record in records
    )
    text += " Watched ACC and ASR are for this plot only: no defence sees them." if watched else ""
    return "".join([*parts, figure(path, f"Curves of the defences against {attack}", text)])


def _sample_table(path: Path, sample: Samples, looks: Looks) -> str:
    """The picture of the first images and beneath it, column by column, what each model says of them."""
    count = min(SHOWN, len(sample.labels))
    if not count:
        return ""
    share = 1.4 / (1.4 + count)  # the row labels are as wide as 1.4 images
    clean, triggered = sample.clean[:count], sample.triggered[:count]
    stamped = not np.array_equal(clean, triggered)
    figures.save_samples(path, clean, triggered if stamped else None, label_share=share)
    targets = _targets(sample)
    what = (
        f"Clean and triggered test images under {sample.attack}, and ten times their difference"
        if stamped
        else "Test images"
    )
    picture = image(path, what)
    names = "".join(
        f"<th scope=col>{escape(sample.classes[int(label)])}</th>"
        for label in sample.labels[:count]
    )
    head = [
        f"<th scope=row>true class</th>{names}</tr><tr><td colspan={count + 1} class=strip>{picture}</td>"
    ]
    body = []
    for defense, both in sample.predictions.items():
        for kind, predicted in list(zip(("clean", "triggered"), both, strict=True))[: 1 + stamped]:
            cells = [_prediction(sample, i, int(predicted[i]), targets) for i in range(count)]
            first = swatch(defense, looks).replace("</th>", f" <small>{kind}</small></th>")
            body.append(f"<tr class={kind}>{first}{''.join(cells)}</tr>")
    columns = f"table-layout:fixed;width:{104 * (1.4 + count):.0f}px;--first:{100 * share:.3f}%"
    text = f"The first {count} samples of seed {sample.seed} and the class each model sees in them; none is the model before any repair."
    if sample.likeness and np.isfinite(sample.likeness["psnr"]):
        found = sample.likeness
        text += f" The trigger changes an image by PSNR {found['psnr']:.1f} dB, SSIM {found['ssim']:.3f}, L∞ {found['largest']:.0f} of 255."
        text += " PSNR and SSIM are means over whole images: of a small patch, which anybody sees, they say little."
    return f"<figure>{table(head, [body], 'samples', columns)}<figcaption>{escape(text)}</figcaption></figure>"


def _prediction(sample: Samples, i: int, predicted: int, targets: np.ndarray | None) -> str:
    name = escape(sample.classes[predicted])
    if predicted == sample.labels[i]:
        return f"<td class=good>✓ {name}</td>"
    if targets is not None and predicted == targets[i]:
        return f"<td class=bad>{name} <b>→ target</b></td>"
    return f"<td class=fair>{name} <b>✗ wrong</b></td>"


def _targets(sample: Samples) -> np.ndarray | None:
    if sample.targets is not None:
        return np.asarray(sample.targets)
    undefined = np.flatnonzero(np.isnan(sample.per_class.get("none", {}).get("asr", np.zeros(0))))
    return np.full(len(sample.labels), undefined[0]) if len(undefined) == 1 else None


def _mean_per_class(samples: Sequence[Samples]) -> dict[str, dict[str, np.ndarray]]:
    """Per-class rates over the seeds where they are defined, nan where they never are."""
    mean: dict[str, dict[str, np.ndarray]] = {}
    for defense in dict.fromkeys(name for sample in samples for name in sample.per_class):
        for kind in ("acc", "asr"):
            found = [
                sample.per_class[defense][kind]
                for sample in samples
                if kind in sample.per_class.get(defense, {})
            ]
            if found:
                rates = np.asarray(found, np.float64)
                known = np.isfinite(rates).sum(0)
                mean.setdefault(defense, {})[kind] = np.where(
                    known > 0, np.nansum(rates, 0) / np.maximum(known, 1), np.nan
                )
    return mean
