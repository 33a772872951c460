"""Functions that render Jinja2 templates to the HTML of report page and leaderboard.

All values are escaped. Pictures and the script are embedded in the page.
"""

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from ..results.outcomes import verdict
from ..results.summary import points, spread

FOLDER = Path(__file__).parent
SIGNS = dict.fromkeys(("kept", "not", "makes", "model", "moved"), ("bad", "✗")) | {
    "removed": ("good", "✓"),
    "disabled": ("fair", "◐"),
    "weakened": ("fair", "◐"),
    "backdoor": ("before", "•"),
    "no": ("before", "•"),
    "": ("before", ""),
}
"""CSS class and sign of a verdict by its first word.

The sign makes the verdict readable without colour.
"""

Cell = str | tuple[str, str]
"""The text of a table cell, or a pair (text, small text after it)."""


class Table(NamedTuple):
    """A table of numbers for the report page: headings in `columns`, names and cells in `rows`.

    `columns` has a (heading, small line) pair per column, `rows` a (name, cells) pair per row.
    """

    columns: list[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@functools.cache
def environment() -> jinja2.Environment:
    """Return the Jinja2 environment of the report's templates.

    An undefined name in a template is an error.
    """
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
    """Return the HTML of a template of `report/templates` filled with escaped values."""
    return Markup(environment().get_template(template).render(**values))


def drawn(section: Callable[[], Markup]) -> Markup:
    """Return the HTML that the function of a page section makes, or an error line if it raises.

    One broken section therefore leaves the rest of the page intact.
    """
    try:
        return section()
    except Exception as error:  # noqa: BLE001 (any error must stay in its section)
        return render("broken.html.j2", error=f"{type(error).__name__}: {error}")


def picture(path: Path) -> str:
    """Return the contents of a PNG file as a data URL, to embed it in HTML."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def seconds(value: float | None) -> str:
    """Return a number of seconds as text, with thin spaces between thousands; "–" for None."""
    digits = 0 if value is not None and value >= 10 else 1
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def sign_of(words: str) -> tuple[str, str]:
    """Return the CSS class and the sign, such as ✓, of a defence's outcome text `words`."""
    return SIGNS.get(re.split("[ ,:]", words)[0], ("bad", "!"))
