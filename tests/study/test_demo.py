"""A test of the demo in its own process: its rates, and resuming after SIGKILL.

It takes minutes and runs only in `make test-all`.
"""

from pathlib import Path

import pytest

from ..helpers.killing import kill_when, logged, results, unbroken

CONFIG = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


@pytest.mark.slow
def test_demo_removes_the_backdoor_and_resumes_exactly_after_sigkill(tmp_path):
    """Check the rates that the demo promises, and that they are the same after three kills.

    The backdoored model has ACC and ASR of at least 95 %. After D3 the ASR is below 5 %, and the
    ACC has fallen by less than 3 points.
    """
    environment = {"D3JAX_CACHE": str(tmp_path / "cache")}
    said = unbroken(CONFIG, tmp_path / "whole", environment, program="d3jax.run")
    assert f"report: {tmp_path / 'whole' / 'report.html'}" in said
    rows = {row["defense"]: row for row in results(tmp_path / "whole")}
    before, after = rows["none"], rows["d3-code"]
    assert float(before["acc"]) >= 0.95 and float(before["asr"]) >= 0.95
    assert float(after["asr"]) < 0.05 and float(after["acc"]) > float(before["acc"]) - 0.03
    killed = tmp_path / "killed"
    moments = [
        # While a checkpoint is written, or immediately after that.
        lambda: list(killed.glob("checkpoints/*/steps/*")),
        lambda: logged(killed, "badnets/seed0/train", '"step": 200'),
        lambda: logged(killed, "badnets/seed0/d3-code", '"step": 150'),
    ]
    for moment in moments:
        kill_when(moment, CONFIG, killed, environment, program="d3jax.run")
    unbroken(CONFIG, killed, environment, program="d3jax.run")
    assert results(killed) == results(tmp_path / "whole")
