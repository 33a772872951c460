"""Jinja2 templates to HTML, with autoescape; pictures go into the page as data."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any

import jinja2

FOLDER = Path(__file__).parent


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
    found.globals["picture"] = picture
    return found


def render(template: str, **values: Any) -> str:
    """Return a template of `report/templates` filled with values, all of them escaped."""
    return environment().get_template(template).render(**values)


def picture(path: Path) -> str:
    """Return a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
