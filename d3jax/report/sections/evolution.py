"""Evolving models in the report: curves over updates, learning-rate strategies, survivability. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...results.artifacts import Row
from ...results.summary import points
from ...results.survival import TAUS, Predicted, Shown, ratio, survived
from ..html import Looks, escape, figure, mark, swatch, table
from ..plots.curves import WIDTH, columns_of, drawing, plain_numbers, short

PANELS = (
    ("acc", "ACC", (0, 103)),
    ("stale_acc", "Stale ACC: the model before the update", (0, 103)),
    ("asr", "ASR", (-3, 103)),
    ("control", "Control: target rate of the clean lineage", (-3, 103)),
)
BANDED = 6
"""More evolutions than these have no bands: they would hide each other."""
CURVATURES = {
    "squared": ((0, (5, 2)), "squared loss"),
    "softmax": ((0, (1, 1.3)), "softmax, at the start"),
}


class Lineages(NamedTuple):
    """What a study found of evolving models: the rows of evolution.csv and of survival.csv, what is `shown` of every evolution, and
    what a linear model predicts."""

    rows: Sequence[Row] = ()
    compared: Sequence[Row] = ()
    shown: Mapping[str, Shown] = {}
    predicted: Sequence[Predicted] = ()


def show_evolutions(
    stem: Path, attack: str, lineages: Lineages, failed: Sequence[Row], looks: Looks
) -> str:
    """For one attack: what its lineages did; "" where there are none. `failed` are the rows of those that did not end."""
    evolved = [row for row in lineages.rows if row["attack"] == attack]
    broken = "".join(
        f"<li>{escape(row['defense'])}, seed {row['seed']}: {mark(row['status'])}</li>"
        for row in failed
    )
    lost = f"<ul class=lead>{broken}</ul>" if broken else ""
    if not evolved:
        return lost
    seeds = len({row["seed"] for row in evolved})
    few = len({row["evolution"] for row in evolved}) <= BANDED
    bands = ", bands one standard deviation" if few else ""
    spread = f" Lines are means over {seeds} seeds{bands}." if seeds > 1 else ""
    path = _save_curves(Path(f"{stem}-evolution.png"), evolved, looks)
    text = f"Rates on test images that drift with the updates; update 0 is the model they begin with, on all test images as they are.{spread}"
    parts = [figure(path, "Rates over the updates", text)]
    if attack == lineages.rows[0]["attack"]:  # they are the same for all
        path = _save_strategies(Path(f"{stem}-rates.png"), lineages.shown, looks)
        parts.append(
            figure(
                path,
                "Learning rates within an update",
                "Learning rate of every step of an update, the same in each.",
            )
        )
    parts.append(
        lost + _table([row for row in lineages.compared if row["attack"] == attack], looks)
    )
    predicted = [one for one in lineages.predicted if one.attack == attack]
    path = _save_predicted(Path(f"{stem}-forgetting.png"), predicted, looks)
    parts.append(figure(path, "What a linear model says of forgetting", PREDICTION))
    return "".join(parts)


def headlines(compared: Sequence[Row]) -> dict[str, str]:
    """One sentence for each attack from the rows of survival.csv: how long its backdoor survives the chosen rate, where least."""
    found = {}
    for attack in dict.fromkeys(row["attack"] for row in compared):
        mine = [
            row for row in compared if row["attack"] == attack and row["survived_0.5"] is not None
        ]
        if not mine:
            continue
        chosen = next((row for row in mine if row["baseline"] == row["evolution"]), mine[0])
        shortest = min(mine, key=lambda row: (row["survived_0.5"], row["counts"] is False))
        others = sum(row["survived_0.5"] == shortest["survived_0.5"] for row in mine) - 1
        text = f"survives {survived(chosen, 0.5)} updates of {chosen['updates']} under {chosen['evolution']}"
        if shortest["survived_0.5"] < chosen["survived_0.5"]:
            small = "" if shortest["counts"] in (None, True) else ", whose ACC is too low"
            more = f" and {others} more" if others else ""
            text += f"; least under {shortest['evolution']}{more}, {survived(shortest, 0.5)}{small}"
        found[attack] = text + "."
    return found


def series(
    evolved: Sequence[Row], evolution: str, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Updates, mean and sample standard deviation over seeds (0 for one) of a column for one evolution, where it has numbers."""
    values: dict[int, list[float]] = {}
    for row in evolved:
        if row["evolution"] == evolution and row[name] is not None:
            values.setdefault(row["update"], []).append(row[name])
    at = sorted(values)
    deviations = [
        np.std(values[update], ddof=1) if len(values[update]) > 1 else 0.0 for update in at
    ]
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
                axis.plot(
                    at,
                    100 * mean,
                    color=colour,
                    linestyle=dash,
                    linewidth=1.5,
                    label=label,
                    marker="o",
                    markersize=2.5,
                )
                if len(labels) <= BANDED:
                    axis.fill_between(
                        at,
                        100 * (mean - deviation),
                        100 * (mean + deviation),
                        color=colour,
                        alpha=0.15,
                        linewidth=0,
                    )
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set(title=title, xlabel="update", ylabel="share (%)", ylim=limits)
        for axis in axes[len(drawn) :]:
            axis.set_axis_off()
        handles, names = axes[0].get_legend_handles_labels()
        names = [short(name, 30) for name in names]
        picture.legend(
            handles, names, loc="outside upper left", ncols=columns_of(names), handlelength=1.8
        )
    return path


def _save_strategies(path: Path, shown: Mapping[str, Shown], looks: Looks) -> Path | None:
    if not shown:
        return None
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    with drawing(path, (WIDTH, 1.8 * lines + 0.2)) as picture:
        axes = picture.subplots(lines, columns, squeeze=False, sharey=True).flatten()
        top = max(float(np.max(one.rates)) for one in shown.values())
        for i, (axis, (label, (rates, *_))) in enumerate(zip(axes, shown.items(), strict=False)):
            axis.plot(
                np.arange(1, len(rates) + 1),
                rates,
                color=looks.get(label, ("#6f7780", "-"))[0],
                linewidth=1.2,
            )
            axis.set(title=short(label, 26), xlabel="step", ylim=(0, 1.05 * top or 1.0))
            if i % columns == 0:
                axis.set_ylabel("learning rate")
            axis.tick_params(labelsize=7.5)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
    return path


def _save_predicted(path: Path, predicted: Sequence[Predicted], looks: Looks) -> Path | None:
    """Where the trigger's direction lies among the eigenspaces, and the measured score beside the predicted."""
    if not predicted:
        return None
    columns = min(4, len(predicted))
    lines = 1 + -(-len(predicted) // columns)
    with drawing(path, (WIDTH, 2.1 * lines + 0.3)) as picture:
        grid = picture.add_gridspec(lines, columns)
        energy = picture.add_subplot(grid[0, :])
        first = predicted[0]
        for shares, colour, label in (
            (first.shares, "#d55e00", "the trigger's direction"),
            (first.eigenvalues / first.eigenvalues.sum(), "#6f7780", "the features themselves"),
        ):
            energy.plot(
                np.maximum(first.eigenvalues, 1e-9),
                100 * np.cumsum(shares),
                color=colour,
                label=label,
                linewidth=1.5,
            )
        energy.set(
            xscale="log",
            title="Energy in the eigenspaces of update 1",
            xlabel="eigenvalue of the second moment, large to small",
        )
        energy.set(ylabel="energy so far (%)", ylim=(0, 103))
        plain_numbers(energy.xaxis)
        energy.invert_xaxis()
        energy.legend(loc="lower right")
        for i, one in enumerate(predicted):
            axis = picture.add_subplot(grid[1 + i // columns, i % columns])
            at = np.arange(len(one.scores))
            measured = one.scores / one.scores[0] if one.scores[0] else one.scores
            axis.plot(
                at, measured, color=looks.get(one.evolution, ("#6f7780", "-"))[0], linewidth=1.6
            )
            axis.plot(
                [], [], color="#2a3138", linewidth=1.6, label="measured (in each its own colour)"
            )
            for name, left in one.left.items():
                dash, label = CURVATURES[name]
                left = np.concatenate([[1.0], left])
                axis.plot(
                    at,
                    np.where(np.abs(left) <= 1.0, left, np.nan),
                    color="#2a3138",
                    linestyle=dash,
                    linewidth=1,
                    label=label,
                )
            top = float(np.max(measured[np.isfinite(measured)], initial=1.2))
            axis.set(title=short(one.evolution, 26), xlabel="update", ylim=(-0.3, 1.08 * top))
            if i % columns == 0:
                axis.set_ylabel("share of the logit")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.tick_params(labelsize=7.5)
        handles, names = axis.get_legend_handles_labels()
        picture.legend(handles, names, loc="outside lower right", ncols=3, handlelength=1.8)
    return path


def _table(compared: Sequence[Row], looks: Looks) -> str:
    """Survivability, accuracy, and what a strategy gains over the best constant rate."""
    head = ["<th scope=col>Evolution</th>"]
    head += [f"<th scope=col class=n>S<small>at ASR {tau:g}</small></th>" for tau in TAUS]
    for name, small in (
        ("ACC", "mean"),
        ("Validation ACC", "mean"),
        ("Stale ACC", "mean"),
        ("Rate", "mean"),
        ("Speed-up", "at ASR 0.5"),
    ):
        head.append(f"<th scope=col class=n>{name}<small>{small}</small></th>")
    body = []
    for row in compared:
        cells = [survived(row, tau) for tau in TAUS]
        for name in ("acc", "valid_acc", "stale_acc"):
            spread = (
                "" if row[f"{name}_std"] is None else f" ± {points(row[f'{name}_std'], digits=1)}"
            )
            cells.append(f"{points(row[name], digits=1)}{spread}")
        low = "<small>ACC too low</small>" if row["counts"] is False else ""
        gain = "chosen" if row["baseline"] == row["evolution"] else ratio(row) + low
        cells += [f"{row['lr_mean']:.3g}", gain]
        body.append(
            f"<tr>{swatch(row['evolution'], looks)}{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
        )
    note = (
        "S: updates survived, 0 where the ASR falls below the threshold with the first; mean over seeds; ≥ where on some seed it never did; – where it was below before. ACC and "
        "learning rate: means over updates, and over an update; ± one standard deviation over seeds. Speed-up: S of the chosen constant rate over S. Chosen: of the constant "
        "rates the one with the best accuracy on validation images, which learning did not see: of the clean lineages, where the study has them (they are in their own section), so that neither ASR nor poison plays a part. A strategy counts "
        "while its mean ACC is at most a point below that one's."
    )
    if any(row["equal_mean"] for row in compared):
        note += " The speed-up of what was scaled to a mean rate is over the constant rate of that mean, where there is one."
    return f"<figure>{table(head, [body], 'glance')}<figcaption>{note}</figcaption></figure>"


PREDICTION = (
    "First seed. Above: how much of the direction in which the trigger moves the backdoored model's features lies in eigenspaces of "
    "the fresh images' second moment with at least that eigenvalue; what lies where eigenvalues are small is hardly forgotten. "
    "Below: by how much the trigger raises its class's logit, as a share of what it was, measured and as a linear model on the "
    "first model's features predicts it, for an optimum that stays where it is (not drawn where its squared loss would diverge)."
)
