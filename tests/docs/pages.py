"""The pages of README and docs, and the code, commands and settings in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITTEN = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
"""Pages that people wrote; those of docs/reference and docs/results are generated."""
PAGES = [*WRITTEN, *sorted((ROOT / "docs").glob("re*/**/*.md"))]


def name_of(path: Path) -> str:
    """Return the name of a page, for test ids."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    text = path.read_text(encoding="utf8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[str]:
    """Return the lines of a page's shell blocks that run a program of d3jax, without comments."""
    lines = [line.strip() for block in blocks(path, "sh") for line in block.splitlines()]
    lines = [re.sub(r"\s+#.*", "", line).removeprefix("srun ") for line in lines]
    return [line for line in lines if line.startswith("python -m d3jax")]
