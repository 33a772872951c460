"""Hooks of the documentation site: add results and the notebook, which lie outside of docs/."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "experiments" / "quickstart.ipynb"
OUTSIDE = re.compile(r"\.\./\.\./(benchmarks/results/[\w./-]+)")
"""A link from a page of docs/results to a file of benchmarks/results."""


def on_files(files: Any, config: Any) -> Any:
    """Add the files of benchmarks/results that pages link to, and the notebook as a page."""
    linked = set()
    for page in (ROOT / "docs").rglob("*.md"):
        linked |= set(OUTSIDE.findall(page.read_text(encoding="utf8")))
    for name in sorted(linked):
        content = (ROOT / name).read_bytes()
        files.append(File.generated(config, _address(name), content=content))
    pictures: dict[str, bytes] = {}
    text = "\n\n".join(_cells(json.loads(NOTEBOOK.read_text(encoding="utf8")), pictures))
    files.append(File.generated(config, "notebook.md", content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to benchmarks/results at their copies in the site."""
    return OUTSIDE.sub(lambda match: "../" + _address(match[1]), markdown)


def _address(name: str) -> str:
    """Return the place of a result in the site; Markdown is shown as plain text."""
    path = "evidence/" + name.removeprefix("benchmarks/results/")
    return path + ".txt" if path.endswith(".md") else path


def _cells(notebook: dict[str, Any], pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield the cells of a notebook as Markdown; its pictures are added to `pictures`."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            if "text" in output:
                yield f"```text\n{''.join(output['text']).rstrip()}\n```"
            if png := output.get("data", {}).get("image/png"):
                name = f"evidence/notebook-{len(pictures)}.png"
                pictures[name] = base64.b64decode(png)
                yield f"![Output of the cell above]({name})"
