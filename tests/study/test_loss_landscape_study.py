"""Tests of loss landscapes in a study: tables, pictures and error messages."""

import pytest

from d3jax.core.errors import ConfigError
from d3jax.results.tables import read_csv
from d3jax.study import check_study

from ..helpers import studies

STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}, clean]
train: {steps: 120, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 80}
paths: 4
defenses:
  - {name: finetune, schedule: {steps: 20}}
  - {name: d3, schedule: {steps: 60, optimizer: {lr: 0.02}}}
"""


@pytest.mark.slow
def test_a_study_reports_the_loss_landscape_and_path_ends_match_the_results(tmp_path):
    studies.run(studies.read(STUDY), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert (
        "Losses along the line to each repaired model" in page
        and "½ΔᵀHΔ" in page
        and "Largest eigenvalues of the Hessian" in page
    )
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {
        "badnets-path.png",
        "badnets-plane.png",
        "badnets-taylor.png",
        "badnets-changes.png",
    } <= pictures
    rows = read_csv(tmp_path / "paths.csv")
    treatments = {(row["attack"], row["defense"], row["statistics"]) for row in rows}
    assert treatments == {
        ("badnets", name, kind)
        for name in ("finetune", "d3-code")
        for kind in ("interpolated", "estimated", "first")
    }
    results = {
        row["defense"]: row
        for row in read_csv(tmp_path / "results.csv")
        if row["attack"] == "badnets"
    }
    at = {(row["defense"], row["t"]): row for row in rows if row["statistics"] == "interpolated"}
    for name in ("finetune", "d3-code"):
        assert [(at[name, t]["acc"], at[name, t]["asr"]) for t in (0, 1)] == [
            (results[of]["acc"], results[of]["asr"]) for of in ("none", name)
        ]
    assert {row["tensor"] for row in read_csv(tmp_path / "changes.csv")} >= {
        "head/kernel",
        "head/bias",
    }


def test_paths_need_an_attack_with_a_trigger():
    config = studies.read(STUDY, ("attacks", "[clean]"))
    with pytest.raises(ConfigError, match="paths: 4 .* none of the attacks .clean. has a trigger"):
        check_study(config, "")
