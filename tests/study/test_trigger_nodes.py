"""Tests of trigger nodes: attacks that compute their trigger before the victim is trained."""

import importlib

import pytest

from d3jax.core.errors import AttackError
from d3jax.study import run_study

from ..helpers import studies

LC = importlib.import_module("d3jax.attacks.lc")  # `d3jax.attacks.lc` is the constructor


STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.15}
model: small
attacks: [{name: lc, rate: 0.2, steps: 3}, {name: lf, steps: 4}]
train: {steps: 40, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 80}
defenses: [{name: finetune, schedule: {steps: 4}}]
loop: {log_every: 2, save_every: 4, save_seconds: 0}
"""


def read(*overrides):
    return studies.read(STUDY, *overrides)


def trees(folder):
    return {path.parent.name: path for path in folder.glob("checkpoints/*/model")}


@pytest.mark.slow
def test_triggers_are_saved_and_attacks_share_the_clean_model(tmp_path, capsys):
    rows = studies.run(read(), tmp_path / "one")
    assert [row["status"] for row in rows] == ["ok"] * 4
    kept = sorted(name.rsplit("-", 1)[0] for name in trees(tmp_path / "one"))
    assert kept == sorted(
        [f"synthetic-{name}-trigger-seed0" for name in ("lc", "lf")]
        + [f"synthetic-{name}-victim-seed0" for name in ("clean", "lc", "lf")]
        + [f"{name}-finetune-seed0" for name in ("lc", "lf")]
    )
    capsys.readouterr()
    again = run_study(read(), tmp_path / "one")
    # The victims exist, so their triggers are not needed.
    assert again == rows and "/trigger" not in capsys.readouterr().out
    one = (("attacks", "[{name: lf, steps: 4}]"), ("loop.members", "together"))
    together = studies.run(read(*one), tmp_path / "two")
    for mine, theirs in zip(together, rows[2:], strict=True):
        assert mine["acc"] == pytest.approx(theirs["acc"], abs=0.04)


def test_a_failed_trigger_fails_only_the_nodes_of_its_attack(tmp_path, monkeypatch):
    def broken(*arguments):
        raise AttackError("no neurons left")

    monkeypatch.setattr(LC, "perturbation_loop", broken)
    rows = studies.run(read(("attacks", "[{name: lc, rate: 0.2}, badnets]")), tmp_path)
    status = {(row["attack"], row["defense"]): row["status"] for row in rows}
    assert (
        status["lc", "none"] == "failed: its trigger failed"
        and status["lc", "finetune"] == "failed: its backdoored model failed"
    )
    assert status["badnets", "none"] == status["badnets", "finetune"] == "ok"
