"""Tests of the page that puts published numbers beside ours."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def published():
    import published

    return published


def ours(defense="d3-code", seed=0, acc=0.9, asr=0.01, **more):
    row = {"dataset": "cifar10", "model": "preact_resnet18", "attack": "badnets-10", "net": "w=1"}
    row |= {"poison_rate": 0.1, "defense": defense, "seed": seed, "acc": acc, "asr": asr}
    return row | {"acc_non_target": 0.5, "attack_seed": 0, "recipe": "2 epochs"} | more


def test_labels_without_preset_and_rate_find_the_published_cell(published):
    cells = published.published()
    (found,) = cells[published.cell_of(ours())]
    assert (found.acc, found.asr, found.others) == (90.77, 0.74, False)
    wanet = published.cell_of(ours(attack="wanet", poison_rate=0.09375))
    assert cells[wanet][0].acc == 93.31


def test_a_line_has_the_mean_over_models_and_the_difference(published):
    cell = published.cell_of(ours())
    theirs = published.Published("paper", 90.0, 1.5, False)
    rows = [ours(acc=0.90, asr=0.01), ours(acc=0.92, asr=0.03, seed=1)]
    (line,) = published.compared({cell: [theirs]}, rows)
    assert line[-3:] == ["2", "91.00 / 2.00", "+1.0 / +0.5, near"]
    (line,) = published.compared({cell: [theirs._replace(others=True)]}, rows)
    assert line[-2:] == ["50.00 / 2.00", "−40.0 / +0.5"]
    shared = [ours("none", seed=seed) for seed in (0, 1)]
    (line,) = published.compared({published.cell_of(shared[0]): [theirs]}, shared)
    assert line[-3] == "1"


def test_cells_that_are_not_measured_are_counted(published):
    cells = published.published()
    lines = published.missing(cells, [])
    assert sum(int(line[-1]) for line in lines) == sum(map(len, cells.values()))
    left = published.missing(cells, [ours()])
    assert sum(int(line[-1]) for line in left) == sum(int(line[-1]) for line in lines) - 1


def test_numbers_in_experiments_are_those_of_the_published_cells(published):
    """Compare every number in `published` of D3's experiment with the CSV files."""
    study = yaml.safe_load((ROOT / "experiments" / "cifar10_d3.yaml").read_text())
    cells, checked = published.published(), 0
    for key, text in study["published"].items():
        attack, label = key.split("/")
        cell = published.Cell("cifar10", "preact_resnet18", attack, label.split("-")[0], 0.1)
        acc, asr = map(float, re.findall(r"[\d.]+", text)[:2])
        assert any((one.acc, one.asr) == (acc, asr) for one in cells[cell]), key
        checked += 1
    assert checked > 15
