"""Tests of the command `python -m d3jax.examine`: a whole examination, and mistakes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from d3jax.examine.__main__ import main
from d3jax.examine.checks import Check
from tests.docs.pages import ROOT

MODEL = ["--model", str(ROOT / "experiments" / "suspect.safetensors")]
CLEAN = ["--data", str(ROOT / "experiments" / "suspect_clean.npz")]


@pytest.mark.slow
def test_the_example_of_the_docs_finds_the_backdoor_and_its_target(tmp_path):
    words = ["python", "-m", "d3jax.examine", *MODEL, *CLEAN, "--out", str(tmp_path)]
    subprocess.run([sys.executable, *words[1:]], check=True, cwd=ROOT)
    (found,) = json.loads((tmp_path / "examination.json").read_text())["conclusions"]
    assert found["level"] == "found" and found["text"].endswith("Its target class is 3.")
    assert found["advice"] in (tmp_path / "examination.html").read_text(encoding="utf8")


def test_a_model_is_read_and_examined_with_nothing_else(tmp_path, monkeypatch, capsys):
    """The checks are replaced; reading the model and writing the page are not."""
    nothing = Check("model", "a method", "nothing", "It found nothing.")
    monkeypatch.setattr("d3jax.examine.check_model", lambda *_: [nothing])
    assert main([*MODEL, "--out", str(tmp_path / "out"), "--size", "16"]) == 0
    printed = capsys.readouterr().out
    assert "preact_resnet18 (width 4)" in printed and "This is a guess" in printed
    assert "does not show that the model is clean" in printed
    assert (tmp_path / "out" / "examination.html").exists()


def test_mistakes_are_one_line_before_any_work(tmp_path, capsys):
    def said(*words):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "no such file" in said("--model", "nowhere.safetensors")
    assert "is a folder; want a file" in said("--model", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", images=images, labels=[0] * 4)
    assert "channels: 1" in said(*MODEL, "--data", str(tmp_path / "colour.npz"))
    assert "--mean: has 3 values, want 1" in said(*MODEL, "--mean", "0", "0", "0")
    (tmp_path / "file").write_text("x")
    assert main([*MODEL, "--out", str(tmp_path / "file")]) == 2
