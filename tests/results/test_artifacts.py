"""Tests of how a run folder reads the log records of its nodes."""

import json

import pytest

from d3jax.results.artifacts import RunFolder, node_folder
from d3jax.results.log_records import by_loop, parse_log

from ..helpers.run_folders import result_row, write_run


def test_metrics_skip_damaged_lines_and_by_loop_keeps_the_last_record_of_a_step(tmp_path):
    run = RunFolder(write_run(tmp_path, [result_row(seed=3)]))
    name = "badnets/seed3/d3-code"
    path = node_folder(tmp_path, name) / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    good = [
        {"loop": "", "step": step, "loss": loss} for step, loss in ((2, 0.2), (1, 0.9), (1, 0.1))
    ]
    good.append({"loop": "semi", "step": 1, "loss": 0.5})
    noise = ["", "[1]", '{"loop": "", "loss": 1}', '{"loop": "", "step": "1"}', '{"loop": "", "st']
    path.write_text("\n".join([*map(json.dumps, good), *noise]))
    with pytest.warns(UserWarning, match="3 lines skipped"):  # not the incomplete last line
        assert run.metrics(name) == good
    loops = by_loop(good)
    assert list(loops) == ["", "semi"]
    assert [(record["step"], record["loss"]) for record in loops[""]] == [(1, 0.1), (2, 0.2)]
    assert run.metrics("badnets/seed3/none") == [] and by_loop([]) == {}


@pytest.mark.parametrize("text", ["", "\n", "\r", "\x0c", " "])
def test_a_log_without_lines_has_no_records(text):
    assert parse_log(text) == ([], 0)
