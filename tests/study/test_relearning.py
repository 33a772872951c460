"""Tests of relearning: the function, and the table and section of a study that asks for it."""

import functools

import jax
import numpy as np
import pytest

from d3jax.analysis.relearning import RelearnConfig, relearn
from d3jax.core.errors import ConfigError
from d3jax.metrics.attack_success import triggered_split
from d3jax.results.tables import read_csv

from ..helpers import studies


def test_a_model_without_poison_learns_no_backdoor_and_with_poison_it_does(fixture):
    model, info = fixture.model, fixture.dataset.info
    fresh = model.init(jax.random.key(5))
    stamp = functools.partial(triggered_split, fixture.attack, fixture.trigger)
    found = {}
    for poisoned in (0, 60):
        config = RelearnConfig(clean=0.5, poisoned=poisoned, epochs=60, batch_size=64)
        done = relearn(
            jax.random.key(0), model, fresh, fixture.dataset.train, fixture.attack, stamp,
            config, info,
        )  # fmt: skip
        assert (done.clean, done.poisoned) == (200, poisoned)
        found[poisoned] = fixture.evaluate(model, done.variables)
    assert found[0].acc > 0.8 and found[60].acc > 0.8
    assert found[0].asr < 0.3 and found[60].asr > 0.7


def test_a_study_measures_every_model_once_more(tmp_path):
    config = studies.read(
        studies.TINY,
        ("evaluations", "[{name: relearn, clean: 0.1, epochs: 2, batch_size: 32}]"),
        ("train.steps", "40"),
    )
    rows = studies.run(config, tmp_path / "run")
    found = read_csv(tmp_path / "run" / "relearned.csv")
    assert [row["defense"] for row in found] == ["none", "finetune", "d3-code"]
    for row, result in zip(found, rows, strict=True):
        assert (row["acc_before"], row["asr_before"]) == (result["acc"], result["asr"])
        assert (row["clean"], row["poisoned"]) == (40, 5) and 0 <= row["asr"] <= 1
    assert (
        "Relearning: each model is fine-tuned on 40 clean"
        in (tmp_path / "run" / "report.html").read_text()
    )
    again = studies.run(config, tmp_path / "run")
    assert [row["acc"] for row in again] == [row["acc"] for row in rows]
    assert read_csv(tmp_path / "run" / "relearned.csv") == found


def test_settings_of_evaluations_are_checked():
    with pytest.raises(ConfigError, match="evaluations.0.clean: 0.0 is out of range"):
        studies.read(studies.TINY, ("evaluations", "[{name: relearn, clean: 0.0}]"))
    with pytest.raises(ConfigError, match="'relearnt' is not in evaluations: relearn"):
        studies.read(studies.TINY, ("evaluations", "[relearnt]"))
    assert np.isclose(RelearnConfig().clean, 0.02) and RelearnConfig().poisoned == 5
