"""Generated pages are up to date, and describe everything that they should."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from d3jax.results.columns import COLUMNS_OF
from d3jax.results.tables import ALWAYS, OTHERS, read_csv

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert SPEC and SPEC.loader
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)
PAGES = generate.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_generated_pages_are_up_to_date(path):
    assert path.read_text(encoding="utf8") == PAGES[path], "run `python docs/generate.py`"


def test_a_stale_page_is_found(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda: {page: "new\n"})
    page.write_text("old\n")
    assert generate.main(["--check"]) == 1 and page.read_text() == "old\n"
    assert generate.main([]) == 0 and page.read_text() == "new\n"
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().out == "page.md: out of date\npage.md: written\n"


def test_every_table_has_documented_columns():
    assert set(COLUMNS_OF) == {*ALWAYS, *OTHERS}


NOT_OF_A_STUDY = {"width", "flag", "code", "power", "extra"}


@pytest.mark.parametrize("table", sorted(COLUMNS_OF))
def test_every_column_in_the_kept_results_is_documented(table):
    """Rows of `detections` before the table `evidence` existed have its columns too."""
    files = [*(ROOT / "benchmarks" / "results").rglob(f"{table}.csv")]
    found = {name for file in files for row in read_csv(file)[:1] for name in row}
    assert found - set(COLUMNS_OF[table]) == set()
