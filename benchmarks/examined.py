"""Print what examinations concluded on models of which the truth is known.

    python benchmarks/examined.py FOLDER=TARGET …

FOLDER is that of an examination (`python -m d3jax.examine --out FOLDER`). TARGET is the target
class of the model's backdoor, or none. Prints a Markdown table with the outcome of each: right,
wrong, or not found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def outcome(level: str, text: str, target: str) -> str:
    """Return whether the conclusion on a model is right, wrong, or did not find its backdoor."""
    if level != "found":
        return "right" if target == "none" else "not found"
    return "right" if text.endswith(f"Its target class is {target}.") else "wrong"


def row(folder: Path, target: str) -> list[str]:
    """Return the cells of one examination: model, target, outcome, conclusion, seconds."""
    found: dict[str, Any] = json.loads((folder / "examination.json").read_text(encoding="utf8"))
    (model,) = (one for one in found["conclusions"] if one["subject"] == "model")
    seconds = sum(check["seconds"] for check in found["checks"])
    result = outcome(model["level"], model["text"], target)
    return [folder.name, target, result, model["text"], f"{seconds:.0f}"]


def main(words: Sequence[str]) -> int:
    """Print the table of the examinations that the command line names."""
    pairs = [word.rpartition("=") for word in words]
    if not pairs or not all(folder and target for folder, _, target in pairs):
        print(__doc__, file=sys.stderr)
        return 2
    lines = [["model", "target", "outcome", "conclusion", "seconds"], ["---"] * 5]
    lines += [row(Path(folder), target) for folder, _, target in pairs]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
