"""Tests of test_map.md, which lists the successors of every test of commit 2c4934d."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
LINES = (TESTS / "test_map.md").read_text(encoding="utf8").splitlines()
ROWS = [re.findall(r"tests/[\w/]+\.py::\w+|(?<=\| )\?(?= \|)", line) for line in LINES]
ROWS = [row for row in ROWS if row]


def test_every_old_test_has_one_line():
    old = [row[0] for row in ROWS]
    assert len(old) == len(set(old)) == 432


def test_every_successor_exists():
    missing = [name for _, *successors in ROWS for name in successors if not exists(name)]
    assert not missing
    assert all(len(row) > 1 for row in ROWS), "a line has no successor"


def exists(name: str) -> bool:
    """Return whether `file::function` is defined; "?" is a successor that is not known yet."""
    if name == "?":
        return True
    path, function = name.split("::")
    file = TESTS.parent / path
    if not file.exists():
        return False
    tree = ast.parse(file.read_text(encoding="utf8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body)
