"""Tests of a study that measures robustness: its table, its page and its node."""

from d3jax.results.columns import COLUMNS_OF
from d3jax.results.tables import read_csv
from d3jax.study.graph import EVALUATED
from d3jax.study.registries import REGISTRIES

from ..helpers import studies


def test_every_evaluation_has_a_node():
    assert set(EVALUATED) == set(REGISTRIES["evaluations"])


def test_a_study_writes_the_table_and_draws_a_curve_for_every_model(tmp_path):
    entry = "{name: robustness, shift: [0, 2], scale: [1, 2], strength: [0, 0.5, 1]}"
    config = studies.read(studies.TINY, ("evaluations", f"[{entry}]"), ("train.steps", "60"))
    results = studies.run(config, tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "robustness.csv")
    assert set(rows[0]) == set(COLUMNS_OF["robustness"])
    amounts = [("shift", 0), ("shift", 2), ("scale", 1.0), ("scale", 2.0)]
    amounts += [("strength", 0.0), ("strength", 0.5), ("strength", 1.0)]
    for number, result in enumerate(results):
        own = rows[7 * number : 7 * number + 7]
        assert [(row["change"], row["amount"]) for row in own] == amounts
        assert {row["defense"] for row in own} == {result["defense"]}
        assert {row["n_triggered"] for row in own} == {result["n_triggered"]}
        assert own[0]["asr"] == own[2]["asr"] == own[6]["asr"] == result["asr"]
    assert len(rows) == 7 * len(results)
    assert rows[4]["asr"] < rows[0]["asr"] and rows[1]["asr"] < rows[0]["asr"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Robustness: the ASR of each model when the trigger changes" in page
    assert (tmp_path / "run" / "figures" / "badnets-robustness.png").is_file()
    studies.run(config, tmp_path / "run")
    assert read_csv(tmp_path / "run" / "robustness.csv") == rows
