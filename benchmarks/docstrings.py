"""Draw docstrings of the package at random, to test whether a stranger understands them.

A reader who has not seen the code says for each first line what the object does. A second person
compares that with the code. What came of it: benchmarks/results/docstrings.txt.

Command: python benchmarks/docstrings.py --count 40 --seed 38 [--places]
    --places also prints the file and the name of each, for the comparison
"""

from __future__ import annotations

import argparse
import ast
import random
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "d3jax"
KINDS = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function"}


def first_lines() -> Iterator[tuple[str, str, str, str]]:
    """Yield (file, name, kind, first line) of every docstring of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if type(node) in KINDS and (text := ast.get_docstring(node)):
                name = getattr(node, "name", path.stem)
                file = path.relative_to(PACKAGE).as_posix()
                yield file, name, KINDS[type(node)], text.split("\n")[0]


def main() -> None:
    """Print the drawn first lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=38)
    parser.add_argument("--places", action="store_true")
    options = parser.parse_args()
    found = random.Random(options.seed).sample(list(first_lines()), options.count)
    for number, (file, name, kind, line) in enumerate(found, 1):
        place = f" [{file}: {name}]" if options.places else ""
        print(f"{number}. ({kind}{place}) {line}")


if __name__ == "__main__":
    main()
