"""Tests of the report page in a headless browser: no errors, no requests, sortable tables."""

import pytest

from d3jax.report import make_report

from ..helpers.browser import Page
from ..helpers.report_runs import HOSTILE, Run, curve


def study(path):
    """Write a study of two attacks with hostile names and the common figures; return its path."""
    run = Run(path)
    for attack in ("badnets", "blended"):
        run.model("none", attack, logged=curve())
        run.model("finetune", attack, asr=0.9, logged=curve())
        run.model("d3", attack, acc=0.8, asr=0.02, logged=curve())
        run.samples(("none", "finetune", "d3"), attack)
        run.features(("none", "d3"), attack)
    run.detection("nc", models=("none", "d3"))
    run.landscape(("finetune", "d3"))
    return run.write()


@pytest.mark.slow
def test_the_page_sorts_in_a_browser_and_fetches_nothing(tmp_path):
    with Page(make_report(study(tmp_path / HOSTILE.replace("/", "")))) as page:
        column = "table.study tbody tr:not(.group) th"
        orders = [page.texts(column)]
        for _ in range(2):
            page.click("table.study thead th:nth-child(4)")  # ASR
            orders.append(page.texts(column))
        assert orders[0][:3] == ["none", "finetune", "d3"]
        assert sorted(order[:3] for order in orders[1:]) == [
            ["d3", "finetune", "none"],
            ["none", "finetune", "d3"],
        ]
        assert page.evaluate("document.querySelectorAll('img').length") > 6
        assert not page.broken_pictures() and not page.errors and not page.requests
        assert page.evaluate("document.querySelectorAll('script').length") == 1


def odd_study(path):
    """Write a study with hostile and very long names; return its path.

    Names of attacks and defences have 80 letters, and the name of one class has 5,000.
    """
    odd = ["w" * 5000, "<script>alert(1)</script>\u202egod", '"onload=alert(1) \x1b[31m']
    run = Run(path, classes=odd)
    for attack in ("a" * 80, HOSTILE):
        run.model("none", attack, logged=curve())
        run.model("d" * 80, attack, acc=0.8, asr=0.02, logged=curve())
        run.samples(("none", "d" * 80), attack)
        run.features(("none", "d" * 80), attack)
    run.detection("nc", "a" * 80, models=("none", "d" * 80))
    return run.write()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_hostile_and_long_names_run_no_script_fetch_nothing_and_fit_the_width(tmp_path, width):
    with Page(make_report(odd_study(tmp_path / "run")), width=width) as page:
        assert not page.errors and not page.requests and not page.broken_pictures()
        assert page.evaluate("document.querySelectorAll('script').length") == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelectorAll('[onload],[onerror]').length") == 0
