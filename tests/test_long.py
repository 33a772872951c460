"""Tests of long.txt, which lists the tests that `make test` leaves out."""

from pathlib import Path

from .test_map import exists

TESTS = Path(__file__).parent
LINES = (TESTS / "long.txt").read_text(encoding="utf8").splitlines()


def test_every_long_test_exists_and_is_listed_once():
    assert sorted(set(LINES)) == LINES
    missing = [line for line in LINES if not _exists(line)]
    assert not missing


def _exists(line: str) -> bool:
    path, _, name = line.partition("::")
    return exists(f"{path}::{name.partition('[')[0]}") if name else (TESTS.parent / path).is_file()
