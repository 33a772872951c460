"""What all pictures share: colours, the style, and figures that are saved as PNG. No jax, no pyplot.

A picture is a list of panels, a panel a list of marks: `save_panels` draws most of them. Every
`save_*` of this package returns the path of its picture, or None, with no file written, where
there is nothing to draw. A defence has one colour in all of them (`palette`).
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STYLE = Path(__file__).parent.parent / "d3jax.mplstyle"
# Okabe and Ito's colour-blind safe hues without black and yellow (unreadable as a line on white),
# then darker ones of Tol.
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255",
        "#808000", "#7f4f24")  # fmt: skip
DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)))
BEFORE, PALE, INK, POISONED = "#6f7780", "#cfd4d9", "#2a3138", "#d55e00"
WIDTH, DPI = 9.6, 160
"""Inches; at DPI this is what the page shows at 960 css pixels, sharp on a doubled screen."""

Arrays = Mapping[str, np.ndarray]
Palette = Mapping[str, tuple[str, Any]]
"""Colour and dash of every defence."""


class Mark(NamedTuple):
    """A line, or what another method of matplotlib's axes draws from `args` with a `style`."""

    args: tuple[Any, ...]
    style: dict[str, Any]
    method: str = "plot"


class Panel(NamedTuple):
    """One pair of axes. `options` are properties of the axes, such as `ylim` or `yscale`."""

    marks: Sequence[Mark]
    options: dict[str, Any]
    whole: bool = False
    """Put the ticks of the x axis at whole numbers."""
    bare: bool = False
    """Leave the grid out and close the frame."""
    legend: str = ""
    """Where a legend of its own stands."""


def palette(defenses: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Return colour and dash of every defence in the order given; "none" is grey.

    After ten the hues repeat with other dashes.
    """
    others = [name for name in dict.fromkeys(defenses) if name != "none"]
    styles = {
        name: (HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {"none": (BEFORE, "-"), **styles}


def style_of(name: str, colours: Palette) -> dict[str, Any]:
    """Return a defence's style as options of a line; a part of one ("abl/isolate") shares it."""
    colour, dash = colours.get(name) or colours.get(name.split("/")[0]) or (BEFORE, "-")
    return {"color": colour, "linestyle": dash}


def save_panels(
    path: Path,
    panels: Sequence[Panel | None],
    columns: int,
    height: float,
    *,
    extra: float = 0.0,
    legend: str = "outside upper left",
    width: float = WIDTH,
) -> Path | None:
    """Draw panels in rows of `columns`, each `height` inches high; None leaves its place empty.

    `extra` inches are for the legend, which has the name of every mark, where they have any.
    """
    if not any(panels):
        return None
    rows = -(-len(panels) // columns)
    with drawing(path, (width, height * rows + extra)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, panel in zip(axes, [*panels, *[None] * (len(axes) - len(panels))], strict=True):
            _draw(axis, panel) if panel else axis.set_axis_off()
        _add_legend(figure, axes, legend)
    return path


def _draw(axis: Any, panel: Panel) -> None:
    for mark in panel.marks:
        getattr(axis, mark.method)(*mark.args, **mark.style)
    axis.set(**panel.options)
    for log in (axis.xaxis, axis.yaxis):
        if log.get_scale() == "log":  # 0.01, not 10⁻², which comes as a formula
            log.set_major_formatter(lambda value, _: f"{value:g}")
            log.set_minor_formatter(lambda value, _: "")
    if panel.whole:
        axis.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    if panel.bare:
        axis.grid(False)
        axis.spines[:].set(visible=True, color=PALE)
    if panel.legend:
        axis.legend(loc=panel.legend)


def _add_legend(figure: Any, axes: Sequence[Any], place: str) -> None:
    """Add one legend for all axes that have none of their own."""
    found = [axis.get_legend_handles_labels() for axis in axes if not axis.get_legend()]
    named = {short(name, 30): handle for each in found for handle, name in zip(*each, strict=True)}
    if named:
        columns = 1 if "right center" in place else columns_of(list(named))
        figure.legend(named.values(), named, loc=place, ncols=columns)


@contextlib.contextmanager
def drawing(path: Path, size: tuple[float, float], layout: Any = "constrained") -> Iterator[Any]:
    """Yield a white figure of `size` inches that is saved to `path` at the end."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with matplotlib.style.context(STYLE), warnings.catch_warnings():
        # A class may be called 猫: a box in the picture, the name in the page's text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        yield figure
        canvas.draw()  # once; savefig draws twice
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(path, "png")


def short(name: str, limit: int) -> str:
    """Return at most `limit` characters: a name's beginning, and its end, in which sweeps differ."""
    end = limit // 2
    return name if len(name) <= limit else f"{name[: limit - 1 - end]}…{name[-end:]}"


def columns_of(names: Sequence[str]) -> int:
    """Return how many columns a legend over the whole width has for such names."""
    longest = max(map(len, names), default=1)
    return max(1, min(6, len(names), int(WIDTH * 15 / (longest + 7))))
