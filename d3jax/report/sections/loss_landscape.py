"""The report page's section on losses between backdoored and repaired models (loss landscape)."""

from collections.abc import Mapping

import numpy as np

from ...results.artifacts import Finished
from ...results.summary import points
from ..plots.loss_landscape import save_changes, save_paths, save_plane, save_taylor
from ..rendering import Cell, Markup, Table, render
from ..view import View

COLUMNS = [
    ("Loss", "clean, t = 1"),
    ("Loss", "backdoor, t = 1"),
    ("ASR", "t = 1"),
    ("ASR", "lowest for t > 1"),
    ("ACC there", "change from t = 1"),
    ("gᵀΔ", "first order"),
    ("½ΔᵀHΔ", "second order"),
]


def show(view: View) -> Markup:
    """Return the HTML section with the figures and the table of an attack's loss landscape."""
    return Markup("").join(_show(view, one) for one in view.finished("loss_landscape"))


def _show(view: View, one: Finished) -> Markup:
    names, arrays, colours = one.record.facts["defenses"], one.arrays, view.study.palette
    planes = [one.record.facts["plane"]] if one.record.facts.get("plane") else []
    changes = view.path("changes"), names, one.record.facts["tensors"]
    return render(
        "loss_landscape.html.j2",
        path=save_paths(view.path("path"), names, arrays),
        plane=next((save_plane(view.path("plane"), models, arrays) for models in planes), None),
        taylor=save_taylor(view.path("taylor"), names, arrays, colours),
        changes=save_changes(*changes, arrays, colours),
        eigenvalues=", ".join(f"{value:.3g}" for value in arrays["eigenvalues"]),
        table=Table(COLUMNS, [(name, _cells(name, arrays)) for name in names]),
    )


def _cells(name: str, arrays: Mapping[str, np.ndarray]) -> list[Cell]:
    """Return the table cells of one line: at the repaired model, and at the lowest ASR after it."""
    ts, (_, slope, curvature) = arrays[f"{name}/ts"], arrays[f"{name}/taylor"]
    at, beyond = int(np.argmin(np.abs(ts - 1))), np.flatnonzero(ts > 1)
    clean, backdoor = (
        arrays[f"{name}/interpolated/{kind}_loss"][at] for kind in ("clean", "backdoor")
    )
    further = "estimated" if f"{name}/estimated/asr" in arrays else "interpolated"
    acc, asr = (arrays[f"{name}/{further}/{kind}"] for kind in ("acc", "asr"))
    least = beyond[np.argmin(asr[beyond])] if len(beyond) else at
    return [
        f"{clean:.3f}",
        f"{backdoor:.3f}",
        points(arrays[f"{name}/interpolated/asr"][at], digits=1),
        (points(asr[least], digits=1), f"t = {ts[least]:g}"),
        points(acc[least] - acc[at], sign=True, digits=1) or "0.0",
        f"{slope:.3g}",
        f"{curvature / 2:.3g}",
    ]
