"""Shared parts of the report's figures: colours, panels, legends and saving as PNG.

They need neither jax nor pyplot. A figure is a list of panels, and a panel is a list of marks.
`save_panels` draws most figures. Every `save_*` of this package returns the path of its figure. If
there is nothing to draw, it writes no file and returns None. A defence has the same colour in all
figures (`palette`).
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...runtime.files import make_folder, make_way

STYLE = Path(__file__).parent.parent / "d3jax.mplstyle"
# Okabe and Ito's colour-blind safe hues, without black and without yellow (unreadable as a line on
# white), followed by darker hues of Tol.
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255",
        "#808000", "#7f4f24")  # fmt: skip
DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)))
BEFORE, PALE, INK, POISONED = "#6f7780", "#cfd4d9", "#2a3138", "#d55e00"
WIDTH, DPI, RIGHT, ABOVE = 9.6, 160, 0.17, 0.32
"""Width of a figure in inches, its resolution, and its margins RIGHT and ABOVE in inches.

The page shows a figure at 960 CSS pixels, so that it is sharp on a high-density screen.
"""

Arrays = Mapping[str, np.ndarray]
Palette = Mapping[str, tuple[str, Any]]
"""Colour and dash pattern of every defence, by its label."""


class Mark(NamedTuple):
    """A call of a method of matplotlib's axes, by default `plot`, which draws a line.

    `args` are its positional arguments, and `style` its keyword arguments.
    """

    args: tuple[Any, ...]
    style: dict[str, Any]
    method: str = "plot"


class Panel(NamedTuple):
    """One pair of axes of a figure: its `marks`, and `options` such as `ylim` or `yscale`."""

    marks: Sequence[Mark]
    options: dict[str, Any]
    whole: bool = False
    """Whether the x axis has its ticks at whole numbers."""
    bare: bool = False
    """Whether to draw a closed frame without grid and ticks."""
    below: float = 0.5
    """Space below the axes in inches, for ticks and label."""
    legend: str = ""
    """Location of the panel's own legend; "" uses the legend of the figure."""


def palette(defenses: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Return the colour and dash pattern of each defence's lines, as a dict by label.

    The label "none" is always added first, in grey. After ten defences the colours repeat with
    other dash patterns.
    """
    others = [name for name in dict.fromkeys(defenses) if name != "none"]
    styles = {
        name: (HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {"none": (BEFORE, "-"), **styles}


def style_of(name: str, colours: Palette) -> dict[str, Any]:
    """Return the line style of a defence as keyword arguments of matplotlib's `plot`.

    A loop of a defence, such as "abl/isolate", has the style of the defence.
    """
    colour, dash = colours.get(name) or colours.get(name.split("/")[0]) or (BEFORE, "-")
    return {"color": colour, "linestyle": dash}


def save_panels(
    path: Path, panels: Sequence[Panel | None], columns: int, height: float, width: float = WIDTH
) -> Path | None:
    """Draw plot panels (`Panel`) in a grid of `columns` columns and save the figure to `path`.

    A panel that is None leaves its place empty. A legend above the grid names the marks of all
    panels without their own legend. Returns None, without a file, if there is no panel.

    Args:
        height: height of a row in inches.
        width: width of the figure in inches.
    """
    shown = [panel for panel in panels if panel]
    if not shown:
        return None
    marks = [mark for panel in shown if not panel.legend for mark in panel.marks]
    names = {mark.style["label"]: mark.style for mark in marks if "label" in mark.style}
    rows, above = -(-len(panels) // columns), 0.22 * -(-len(names) // columns_of(list(names)))
    with drawing(path, (width, height * rows + above)) as figure:
        # An automatic layout would take most of the drawing time. These margins (inches) leave
        # room for ticks and labels on the left, labels below and a title above.
        left, below = 0.1 if shown[0].bare else 0.68, shown[0].below
        grid = figure.add_gridspec(
            rows, columns, left=left / width, right=1 - RIGHT / width,
            bottom=below / (height * rows + above),
            top=1 - (above + ABOVE) / (height * rows + above),
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
        if side.get_scale() == "log":  # shows 0.01; the default 10⁻² needs math text
            side.set_major_formatter(lambda value, _: f"{value:g}")
            side.set_minor_formatter(lambda value, _: "")
        elif isinstance(side.get_major_locator(), AutoLocator):  # every tick costs time
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
    """Yield a white matplotlib figure of `size` inches, and save it to `path` at the end."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE), warnings.catch_warnings():
        # A class may be called 猫: the figure shows a box, and the page's text shows the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
        yield figure
        make_folder(path.parent)
        make_way(path)
        figure.savefig(path, pil_kwargs={"compress_level": 4})


def short(name: str, limit: int) -> str:
    """Return a name shortened to `limit` characters, with "…" in place of the middle.

    The beginning and the end remain, because the names of a sweep differ at the end.
    """
    cut = f"{name[: limit - 1 - limit // 2]}…{name[-(limit // 2) :]}"
    return name if len(name) <= limit else cut


def columns_of(names: Sequence[str]) -> int:
    """Return the number of columns of a legend with these names, as wide as a figure."""
    return max(1, min(6, len(names), int(WIDTH * 15 / (max(map(len, names), default=1) + 7))))
