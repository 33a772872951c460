"""Tests of detections and repairs that invert a trigger, in a study.

They cover shared inversions, rows, the page, error messages and resuming after SIGKILL.
"""

import csv
import dataclasses
import os
import shutil
import sys

import pytest

from d3jax.core.errors import ConfigError, OutOfMemoryError
from d3jax.core.types import Verdict
from d3jax.defenses.model_detection import inversion as inversion_detector
from d3jax.inversion.config import PRESETS
from d3jax.results.artifacts import RunFolder
from d3jax.results.node_arrays import ARRAYS
from d3jax.results.summary import detections
from d3jax.results.tables import read_csv
from d3jax.runtime.progress import Progress
from d3jax.study import check_study, run_study

from ..helpers import studies
from ..helpers.killing import kill_when, results, unbroken

QUICK = "{batches: 4, passes: 40, patience: 2, stop: 6, preset: nc}"
REPAIR = (
    "{epochs: 15, batch_size: 32, optimizer: {lr: 0.1, weight_decay: 1e-4, schedule: constant}}"
)
STUDY = f"""
dataset: {{name: synthetic, size: 12, classes: 5, train: 500, test: 130, noise: 0.15}}
model: small
attacks: [{{name: badnets, rate: 0.1, target: 1}}]
train: {{steps: 150, batch_size: 64, augment: none, optimizer: {{lr: 0.05}}}}
reserved: {{count: 128}}
detections:
  - {{name: inversion, batches: 4, passes: 40, patience: 2, stop: 6}}
defenses:
  - {{name: mcl, detection: {QUICK}, inversion: {QUICK}, schedule: {REPAIR}}}
  - {{name: mcl, label: mcl-given, preset: ours, target: 1, inversion: {QUICK}, schedule: {REPAIR}}}
  - {{name: nc, detection: {QUICK}, inversion: {QUICK}, schedule: {{epochs: 20}}}}
features: 60
loop: {{log_every: 10, save_every: 1000}}
"""


def read(text=STUDY, *overrides):
    return studies.read(text, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection") / "study"
    rows = studies.run(read(), folder)
    with studies.unchanged(folder):
        yield folder, rows


def test_one_inversion_serves_detection_and_defences(finished):
    """The study computes one inversion of all classes and one of the given class.

    The first serves the detection and both repairs that detect. The second serves `mcl-given`.
    """
    folder, _ = finished
    for kind in ("evidence", "inversion"):
        assert len(list((folder / "checkpoints").glob(f"*-{kind}-*"))) == 1
    searches = {name.split("/")[2] for name in studies.logged_loops(folder) if "inversion" in name}
    assert {name.rpartition("-")[0] for name in searches} == {
        "evidence-inversion",
        "inversion-nc-class1",
    }


def test_the_backdoor_is_found_and_repaired(finished):
    folder, rows = finished
    found = read_csv(folder / "detections.csv")
    (one,) = detections(found)
    assert (
        one["flagged_classes"] == "1"
        and one["right"]
        and one["text"].endswith("It finds the target.")
    )
    evidence = read_csv(folder / "evidence.csv")
    assert [row["flagged"] for row in evidence] == [row["is_target"] for row in evidence]
    assert len(evidence) == 5 and {"norm", "index", "success", "passes"} <= set(evidence[0])
    by = {row["defense"]: row for row in rows}
    for defense in ("mcl-code", "mcl-given", "nc"):
        row = by[defense]
        assert row["asr"] < 0.5 and row["target"] == 1 and row["trigger_success"] > 0.85, row
    assert (
        by["mcl-code"]["chosen"].startswith("flagged with score")
        and by["mcl-given"]["chosen"] == "given"
    )
    assert (
        by["mcl-code"]["anomaly_index"] > 2
        and by["mcl-given"]["anomaly_index"] is None
        and "target" not in by["none"]
    )


def test_a_repair_leaves_the_model_where_no_class_is_flagged(
    finished, tmp_path, monkeypatch, capsys
):
    folder, rows = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "checkpoints").glob("badnets-mcl-code-*"):
        shutil.rmtree(path)
    monkeypatch.setattr(Verdict, "target", -1)
    again = {row["defense"]: row for row in run_study(read(), copy, Progress())}
    before, row = rows[0], again["mcl-code"]
    assert (row["target"], row["trigger_success"], row["asr"]) == (-1, None, before["asr"])
    assert row["chosen"].startswith("none flagged, the statistic is")
    assert "badnets/seed0/mcl-code: not repaired: none flagged" in capsys.readouterr().out
    assert "not repaired: no class flagged" in (copy / "report.html").read_text()


def test_a_failed_detection_has_a_row_with_its_error_and_fails_its_repair(
    finished, tmp_path, monkeypatch
):
    def broken(*_, hooks):
        raise OutOfMemoryError("no memory")

    folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "checkpoints").glob("*badnets-evidence-*"):
        shutil.rmtree(path)
    monkeypatch.setattr(inversion_detector, "invert", broken)
    status = {row["defense"]: row["status"] for row in studies.run(read(), copy)}
    assert (
        status["inversion-nc"] == "failed: no memory"
        and status["nc"] == "failed: its detection failed"
    )
    assert status["none"] == "ok"


def test_the_page_shows_triggers_and_features(finished):
    folder, _ = finished
    page = (folder / "report.html").read_text()
    for text in (
        "the bars show the norm of the inverted trigger of each class",
        "Flagged (coloured): 1 (norm",
        "★ marks the attacker's target: 1",
        "Distance to clean twin",
    ):
        assert text in page
    successes = [row["success"] for row in read_csv(folder / "evidence.csv")]
    assert ("A search failed if" in page) == (min(successes) < 0.5)
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {
        "badnets-inversion-nc.png",
        "badnets-inversion-nc-triggers.png",
        "badnets-features.png",
    } <= pictures


def test_a_report_reads_detections_without_searching_again(finished, tmp_path, capsys, monkeypatch):
    folder, rows = shutil.copytree(finished[0], tmp_path / "copy"), finished[1]
    monkeypatch.setattr(
        sys.modules["d3jax.inversion.invert"], "fit", lambda *_: pytest.fail("searched again")
    )
    again = run_study(read(), folder, Progress(), compute=False)
    assert [row["asr"] for row in again] == [row["asr"] for row in rows]
    assert "badnets, seed 0: inversion-nc flags 1 (statistic" in capsys.readouterr().out


def test_a_missing_inversion_is_named_in_every_row_that_needs_it(finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "checkpoints").glob("*badnets-evidence-*"):
        shutil.rmtree(path)
    rows = studies.run(read(), copy, compute=False)
    status = {row["defense"]: row["status"] for row in rows}
    assert status["inversion-nc"] == "not finished: no model yet"
    assert status["nc"] == "not finished: its detection is not finished" and status["none"] == "ok"


def test_saved_arrays_match_those_declared_for_their_node_kind(finished):
    run, seen = RunFolder(finished[0]), set()
    own = {"model_detection": {"norm", "index", "success", "passes"}}
    for node in run.manifest.nodes:
        if arrays := run.arrays(node.name):
            declared = ARRAYS[node.kind]
            assert set(arrays) >= declared.__required_keys__, node.name
            known = set(declared.__annotations__) | own.get(node.kind, set())
            assert set(arrays) <= known, node.name
            seen.add(node.kind)
    assert seen == {"report_samples", "features", "model_detection"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("reserved.count", "20"), "inversion.batch_size: 32 is more than the 20 reserved images"),
        (
            ("defenses", "[]"),
            "detections: inversion-nc: batch_size: 200 is more than the 128 reserved images",
        ),
        (
            ("defenses.0.schedule.batch_size", "200"),
            "defenses: mcl-code: batch_size: 200 is more than the 128 images there are",
        ),
        (
            ("defenses.1.target", "9"),
            "defenses: mcl-given: target: 9 is not a class of synthetic, want 0 to 4",
        ),
        (("defenses.1.inversion", "3"), "defenses.1.inversion: want a mapping, got 3"),
        (("dataset.classes", "2"), "target: cannot be detected among 2 classes"),
        (("defenses.1.target", "no"), "want a whole number or a text, got False"),
        (("defenses.1.target", "all"), "target: 'all' is no class of synthetic"),
        (("detections.0.preset", "tabor"), "'tabor' is not one of nc, fixed, pixel"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, override, message):
    extra = [("detections.0.batch_size", "200")] if override[0] == "defenses" else []
    with pytest.raises(ConfigError, match=message):
        check_study(read(STUDY, override, *extra), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_preset_of_a_section_replaces_its_default():
    config = read(STUDY, ("defenses.1.inversion", "{preset: nc}")).defenses[1].config
    assert config.inversion == PRESETS["nc"]
    kept = read(STUDY, ("defenses.1.inversion", "{passes: 7}")).defenses[1].config
    assert kept.inversion == dataclasses.replace(PRESETS["pixel"], passes=7)


@pytest.mark.slow
def test_a_study_killed_in_inversion_and_repairs_resumes_to_the_same_numbers(tmp_path):
    environment = os.environ | {"D3JAX_CACHE": str(tmp_path / "cache")}
    config = tmp_path / "study.yaml"
    config.write_text(STUDY.replace("save_every: 1000", "save_every: 20, save_seconds: 0"))
    unbroken(config, tmp_path / "whole", environment)
    broken = tmp_path / "broken"
    for node in ("evidence-*", "mcl-code", "nc"):
        logs = f"nodes/badnets/seed0/{node}/metrics.jsonl"
        kill_when(
            lambda logs=logs: any(path.stat().st_size for path in broken.glob(logs)),
            config,
            broken,
            environment,
        )
    unbroken(config, broken, environment)
    assert results(broken) == results(tmp_path / "whole")

    def without_times(folder):
        with (folder / "detections.csv").open() as file:
            return [
                {key: value for key, value in row.items() if key != "seconds"}
                for row in csv.DictReader(file)
            ]

    assert without_times(broken) == without_times(tmp_path / "whole")
