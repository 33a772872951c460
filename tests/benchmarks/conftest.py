"""A fixture that makes the modules of benchmarks/ importable."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let tests import the modules in benchmarks/."""
    monkeypatch.syspath_prepend(str(FOLDER))
