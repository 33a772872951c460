"""Jinja2 templates to HTML, with autoescape; pictures and the one script go into the page itself."""

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from ..results.summary import points, spread, verdict

FOLDER = Path(__file__).parent
SIGNS = dict.fromkeys(("kept", "not", "makes", "model"), ("bad", "✗")) | {
    "removed": ("good", "✓"),
    "disabled": ("fair", "◐"),
    "weakened": ("fair", "◐"),
    "backdoor": ("before", "•"),
    "no": ("before", "•"),
    "": ("before", ""),
}
"""Class and sign of a verdict by its first word; the sign is there so that colour does not carry it alone."""

Cell = str | tuple[str, str]
"""A cell's text, or its text and a small one after it."""


class Table(NamedTuple):
    """A table of numbers: a heading (with a small line) for each column, a name and its cells a row."""

    columns: list[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@functools.cache
def environment() -> jinja2.Environment:
    """Return the template environment; an undefined name in a template is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([FOLDER / "templates", FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (FOLDER / "sort.js").read_text(encoding="utf8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    functions = (picture, points, seconds, sign_of, spread, verdict)
    found.globals |= {function.__name__: function for function in functions}
    found.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return found


def render(template: str, **values: Any) -> Markup:
    """Return a template of `report/templates` filled with values, all of them escaped."""
    return Markup(environment().get_template(template).render(**values))


def drawn(section: Callable[[], Markup]) -> Markup:
    """Return what a section makes, or a line that says why it is missing; others do not depend on it."""
    try:
        return section()
    except Exception as error:  # noqa: BLE001 (whatever it is)
        return render("broken.html.j2", error=f"{type(error).__name__}: {error}")


def picture(path: Path) -> str:
    """Return a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def seconds(value: float | None) -> str:
    """Return seconds with thin spaces between thousands; "–" for None."""
    digits = 0 if value is not None and value >= 10 else 1
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def sign_of(words: str) -> tuple[str, str]:
    """Return the CSS class and the sign of a verdict."""
    return SIGNS.get(re.split("[ ,:]", words)[0], ("bad", "!"))
