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

from ...runtime.files import make_folder, make_way

STYLE = Path(__file__).parent.parent / "d3jax.mplstyle"
# Okabe and Ito's colour-blind safe hues without black and yellow (unreadable as a line on white),
# then darker ones of Tol.
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255",
        "#808000", "#7f4f24")  # fmt: skip
DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)))
BEFORE, PALE, INK, POISONED = "#6f7780", "#cfd4d9", "#2a3138", "#d55e00"
WIDTH, DPI, RIGHT, ABOVE = 9.6, 160, 0.17, 0.32
"""Inches (of margins: RIGHT, ABOVE); at DPI this is what the page shows at 960 css pixels, sharp on a doubled screen."""

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
    """Leave the grid out, close the frame and have no ticks."""
    below: float = 0.5
    """Inches below the axes, for ticks and label."""
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
    path: Path, panels: Sequence[Panel | None], columns: int, height: float, width: float = WIDTH
) -> Path | None:
    """Draw panels in rows of `columns`, each `height` inches high; None leaves its place empty.

    One legend above them names the marks of all panels that have none of their own.
    """
    shown = [panel for panel in panels if panel]
    if not shown:
        return None
    marks = [mark for panel in shown if not panel.legend for mark in panel.marks]
    names = {mark.style["label"]: mark.style for mark in marks if "label" in mark.style}
    rows, above = -(-len(panels) // columns), 0.22 * -(-len(names) // columns_of(list(names)))
    with drawing(path, (width, height * rows + above)) as figure:
        # A layout that looks at what is drawn takes most of the time: these margins (inches) hold
        # ticks and labels to the left, labels below and a title above.
        left, below = 0.1 if shown[0].bare else 0.68, shown[0].below
        grid = figure.add_gridspec(
            rows, columns, left=left / width, right=1 - RIGHT / width,
            bottom=below / (height * rows + above), top=1 - (above + ABOVE) / (height * rows + above),
            wspace=left / ((width - columns * left - RIGHT) / columns),
            hspace=(below + ABOVE) / (height - below - ABOVE),
        )  # fmt: skip
        for place, panel in zip(grid, panels, strict=False):
            if panel:
                _draw(figure.add_subplot(place), panel)
        _add_legend(figure, names)
    return path


def _draw(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import AutoLocator

    for mark in panel.marks:
        getattr(axis, mark.method)(*mark.args, **mark.style)
    axis.set(**panel.options)
    for side in (axis.xaxis, axis.yaxis):
        if side.get_scale() == "log":  # 0.01, not 10⁻², which comes as a formula
            side.set_major_formatter(lambda value, _: f"{value:g}")
            side.set_minor_formatter(lambda value, _: "")
        elif isinstance(side.get_major_locator(), AutoLocator):  # every tick takes time
            side.get_major_locator().set_params(nbins=5, integer=panel.whole and side is axis.xaxis)
    if panel.bare:
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color=PALE)
    if panel.legend:
        axis.legend(loc=panel.legend)


def _add_legend(figure: Any, names: Mapping[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=one["color"], linestyle=one.get("linestyle")) for one in names.values()
    ]
    labels = [short(name, 30) for name in names]
    if names:
        figure.legend(lines, labels, loc="upper left", ncols=columns_of(labels), borderpad=0.2)


@contextlib.contextmanager
def drawing(path: Path, size: tuple[float, float], layout: Any = "none") -> Iterator[Any]:
    """Yield a white figure of `size` inches that is saved to `path` at the end."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE), warnings.catch_warnings():
        # A class may be called 猫: a box in the picture, the name in the page's text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
        yield figure
        make_folder(path.parent)
        make_way(path)
        figure.savefig(path, pil_kwargs={"compress_level": 4})


def short(name: str, limit: int) -> str:
    """Return at most `limit` characters: a name's beginning, and its end, in which sweeps differ."""
    cut = f"{name[: limit - 1 - limit // 2]}…{name[-(limit // 2) :]}"
    return name if len(name) <= limit else cut


def columns_of(names: Sequence[str]) -> int:
    """Return how many columns a legend over the whole width has for such names."""
    return max(1, min(6, len(names), int(WIDTH * 15 / (max(map(len, names), default=1) + 7))))
