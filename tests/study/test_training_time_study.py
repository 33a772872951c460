"""Tests of ABL and DLP in a study: rows, page, resuming and error messages.

They also check that poison flags change no weight.
"""

import shutil

import jax
import numpy as np
import pytest

from d3jax.core.errors import AttackError, ConfigError
from d3jax.defenses.training_time.suspicion import (
    found_shapes,
)
from d3jax.results.tables import read_csv
from d3jax.runtime import checkpoint
from d3jax.runtime.progress import Progress
from d3jax.study import check_study, run_study
from d3jax.study.nodes import first_stage, training_time

from ..helpers import studies
from ..helpers.studies import Breaking

STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.3}
model: small
attacks: [{name: badnets, rate: 0.15}]
train: {steps: 100, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 64}
defenses:
  - name: abl
    ratio: 0.05
    isolate:
      {steps: 20, batch_size: 32, augment: none, optimizer: {lr: 0.05, schedule: constant}}
    finetune: {steps: 30, batch_size: 32, optimizer: {lr: 0.05}}
    unlearn: {optimizer: {lr: 0.1}, steps: 60, batch_size: 20, bounded: true}
  - name: dlp
    ratio: 0.05
    supervised:
      {steps: 20, batch_size: 32, augment: none, optimizer: {lr: 0.05, schedule: constant}}
    unlearn: {optimizer: {lr: 0.005}, steps: 50, batch_size: 20}
    semi: {steps: 100, batch_size: 32}
  - name: dlp
    label: first
    stages: "1"
    supervised:
      {steps: 20, batch_size: 32, augment: none, optimizer: {lr: 0.05, schedule: constant}}
loop: {log_every: 5, save_every: 1000}
"""


def read(*overrides):
    return studies.read(STUDY, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "study"
    rows = studies.run(read(), folder)
    with studies.unchanged(folder):
        yield folder, rows


def test_dlp_removes_the_backdoor_and_equal_first_stages_are_trained_once(finished):
    folder, rows = finished
    assert [row["defense"] for row in rows] == ["none", "abl-authors", "dlp", "first"]
    none, found, dlp_row, first = rows
    assert (
        none["asr"] > 0.9 and first["asr"] > 0.9 and dlp_row["asr"] < 0.1 and dlp_row["der"] > 0.9
    )
    assert (
        found["suspects"] == 20
        and dlp_row["suspects_poisoned"] > 0.5
        and dlp_row["labelled_poisoned"] < 0.1
    )
    assert first["labelled_poisoned"] is None and "suspects" not in none
    table = read_csv(folder / "filters.csv")
    scores = {(row["defense"], row["score"]): row for row in table}
    assert {"entropy", "cross_entropy", "symmetric", "mixture", "rescored", "rescored_entropy"} == {
        s for d, s in scores if d == "dlp"
    }
    # After unlearning, the model fits the poisoned samples worst.
    assert scores["dlp", "rescored"]["auroc"] < 0.5
    # Both defences use the same first stage.
    assert scores["first", "entropy"] == scores["dlp", "entropy"] | {"defense": "first"}
    assert len(list((folder / "checkpoints").glob("*first_stage*"))) == 2


def test_the_page_shows_learning_scores_and_filters(finished):
    folder, rows = finished
    page = (folder / "report.html").read_text()
    assert "how clean and poisoned images are learned" in page and "of the lowest 1 %" in page
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {
        "badnets-dlp-learning.png",
        "badnets-dlp-scores.png",
        "badnets-dlp-rescored.png",
        "badnets-dlp-kept.png",
        "badnets-abl-authors-scores.png",
    } <= pictures
    assert "badnets-first-scores.png" not in pictures  # dlp's page shows that first stage
    dlp_row = next(row for row in rows if row["defense"] == "dlp")
    share = 100 * dlp_row["labelled_poisoned"]
    assert (
        "<th scope=row>dlp</th><td class=n>20</td>"
        f"<td class=n>{100 * dlp_row['suspects_poisoned']:.1f}</td>"
        f"<td class=n>{100 * dlp_row['poison_suspected']:.1f}</td>"
        f"<td class=n>{share:.2f}</td>" in page
    )


def test_a_rerun_logs_the_same_records_and_deletes_old_figures(finished, tmp_path):
    """The log records of a node with several train loops name the node only, computed or found."""
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    logged = studies.logged_loops(folder)
    assert {"badnets/seed0/dlp", "badnets/seed0/abl-authors"} <= set(logged)
    assert all(name.count("/") == 2 for name in logged)
    (folder / "figures" / "of-an-earlier-study.png").touch()
    (folder / "figures" / "made.json").write_text('["of-an-earlier-study.png"]')
    studies.run(read(), folder)
    assert studies.logged_loops(folder) == logged
    assert not (folder / "figures" / "of-an-earlier-study.png").exists()


def test_another_study_in_the_same_folder_is_reported(finished, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seeds: [5]")
    (tmp_path / "study.json").write_text("{}")
    run_study(read(("defenses", "[]")), tmp_path, Progress())
    assert f"{tmp_path} holds a study with other settings" in capsys.readouterr().out


@pytest.mark.slow
def test_poison_flags_change_no_weight(finished, tmp_path, monkeypatch, model):
    """Other flags change the reported precision, and the models stay equal to the bit."""
    folder, rows = finished
    true = first_stage.poisoned_split
    monkeypatch.setattr(
        first_stage, "poisoned_split", lambda *given: (true(*given)[0], np.roll(true(*given)[1], 7))
    )

    def other_flags(context, run):
        return np.arange(400) % 2 == 0

    monkeypatch.setattr(training_time, "poison_flags", other_flags)
    again = studies.run(read(), tmp_path)
    for before, after in zip(rows, again, strict=True):
        assert all(before[name] == after[name] for name in ("acc", "asr", "ra"))
    assert rows[1]["suspects_poisoned"] != again[1]["suspects_poisoned"]
    same_models(model, folder, tmp_path)


@pytest.mark.slow
def test_an_interrupted_study_continues_exactly(finished, tmp_path, model):
    folder, _ = finished
    often = (("loop.save_every", "10"), ("loop.save_seconds", "0"))
    cuts = 0
    while cuts < 20:  # interrupts every stage of both defences, which log 4 to 20 records each
        try:
            run_study(read(*often), tmp_path, Breaking(11))
            break
        except KeyboardInterrupt:
            cuts += 1
    assert 5 < cuts < 20
    assert (tmp_path / "filters.csv").read_text() == (folder / "filters.csv").read_text()

    def rates(where):
        return [(row["acc"], row["asr"], row["ra"]) for row in read_csv(where / "results.csv")]

    assert rates(tmp_path) == rates(folder)
    same_models(model, folder, tmp_path)


def same_models(model, *folders):
    """Assert that the models and suspects of ABL and DLP are equal in all run folders."""
    like = training_time.TrainedModel(
        jax.eval_shape(model.init, jax.random.key(0)), found_shapes(400)
    )
    for name in ("dlp", "abl"):
        trees = [
            checkpoint.load(next(where.glob(f"checkpoints/*-{name}-*seed0-*/model")), like)[0]
            for where in folders
        ]
        jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ("attacks", "[wanet]"),
            (
                "attacks: wanet: defenses: abl-authors: has no poisoned set that could be "
                "released: it controls"
            ),
        ),
        (
            ("defenses.1.semi.batch_size", "300"),
            "defenses: dlp: semi.batch_size: 300 is more than the 200 images",
        ),
        (("defenses.1.stages", "21"), "stages: 21 is not one of 1, 12, 13, 123"),
        (
            ("defenses.0.unlearn", "{descent: turns, batch_size: 201}"),
            (
                "defenses: abl-authors: unlearn.batch_size: 201 may want 201 trusted images "
                "a step, more than the 200 there are"
            ),
        ),
        (
            ("defenses.0.unlearn", "{descent: together, batch_size: 300}"),
            (
                "defenses: abl-authors: unlearn.batch_size: 300 may want 299 trusted images "
                "a step, more than the 200 there are"
            ),
        ),
        (
            ("defenses.0.unlearn", "{descent: together, batch_size: 1}"),
            (
                "defenses: abl-authors: unlearn.batch_size: 1 has no room for trusted images "
                "beside the suspects"
            ),
        ),
        (
            ("defenses.0.unlearn", "{descent: turns, share: 0.5}"),
            "unlearn.share: 0.5 does not apply to descent: turns, which has no such setting",
        ),
        (
            ("defenses.0.unlearn", "{trusted: all}"),
            "unlearn.trusted: all does not apply to descent: none, which has no such setting",
        ),
        (
            ("defenses.1.unlearn", "{descent: none}"),
            "trials: 2 does not work with unlearn.descent: none, as a trial needs trusted images",
        ),
        (
            ("defenses.1.unlearn", "{trusted: all}"),
            "trials: 2 does not work with unlearn.trusted: all, as a trial needs trusted images",
        ),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, override, message):
    with pytest.raises((ConfigError, AttackError), match=message):
        check_study(read(override), tmp_path)
