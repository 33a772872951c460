"""The demo as a user meets it: its promises, and SIGKILL at three moments. Minutes long, so only in `make test-all`."""

from pathlib import Path

import pytest

from ..helpers.killing import kill_when, logged, results, unbroken

CONFIG = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


@pytest.mark.slow
def test_the_demo_keeps_its_promise_and_survives_sigkill(tmp_path):
    """ACC and ASR ≥ 95 % before, ASR < 5 % at an ACC loss under 3 points after D3; killed three times, the same numbers."""
    environment = {"D3JAX_CACHE": str(tmp_path / "cache")}
    said = unbroken(CONFIG, tmp_path / "whole", environment, program="d3jax.run")
    assert f"report: {tmp_path / 'whole' / 'report.html'}" in said
    rows = {row["defense"]: row for row in results(tmp_path / "whole")}
    before, after = rows["none"], rows["d3-code"]
    assert float(before["acc"]) >= 0.95 and float(before["asr"]) >= 0.95
    assert float(after["asr"]) < 0.05 and float(after["acc"]) > float(before["acc"]) - 0.03
    killed = tmp_path / "killed"
    moments = [
        lambda: list(
            killed.glob("checkpoints/*/steps/*")
        ),  # while, or right after, a checkpoint is written
        lambda: logged(killed, "badnets/seed0/train", '"step": 450'),
        lambda: logged(killed, "badnets/seed0/d3-code", '"step": 550'),
    ]
    for moment in moments:
        kill_when(moment, CONFIG, killed, environment, program="d3jax.run")
    unbroken(CONFIG, killed, environment, program="d3jax.run")
    assert results(killed) == results(tmp_path / "whole")
