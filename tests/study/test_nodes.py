"""Tests of a study's nodes: order, groups, reuse, contained failures and records."""

import dataclasses
import json
import shutil

import pytest

from d3jax.core.errors import ConfigError, DataError
from d3jax.results import artifacts, tables
from d3jax.study import graph
from d3jax.study.nodes.evidence import EvidenceNode
from d3jax.study.nodes.repair import RepairNode
from d3jax.study.nodes.report_samples import SamplesNode
from d3jax.study.planner import part_of, plan

from ..helpers import studies

STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 200, test: 40, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}, {name: lf, steps: 3}]
train: {steps: 8, batch_size: 32, augment: none}
reserved: {count: 40}
features: 12
detections: [{name: inversion, preset: nc, passes: 2, batches: 2}]
defenses:
  - {name: finetune, schedule: {steps: 4}}
  - {name: d3, sweep: {lam: [0.5, 2]}, schedule: {steps: 4}}
  - {name: mcl, target: detect, schedule: {steps: 2, batch_size: 32},
     inversion: {passes: 2, batches: 2}, detection: {passes: 2, batches: 2}}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    return graph.make_nodes(studies.opened(studies.read(STUDY), folder))


def order_of(groups):
    """Return the position of each node's group, by the node's name."""
    return {node.name: i for i, group in enumerate(groups) for node in group}


@pytest.mark.parametrize("together", [False, True])
def test_every_group_comes_after_all_that_it_needs(nodes, together):
    groups = plan(nodes, together=together)
    at = order_of(groups)
    for group in groups:
        for node in group:
            assert all(at[needed.name] < at[node.name] for needed in node.needs.values())
    assert {node.name for node in nodes} <= set(at)


def test_nodes_of_one_program_form_a_group_only_when_together(nodes):
    groups = plan(nodes, together=True)
    sizes = {(group[0].kind, group[0].run.label): len(group) for group in groups if len(group) > 1}
    # Victims: two seeds of each attack form a group. Repairs: fine-tuning has two seeds under two
    # attacks, D3 has also two settings, and the four nodes of MCL run alone.
    assert sizes[("victim", "badnets")] == 2 and sizes[("victim", "lf")] == 2
    assert sorted(len(group) for group in groups if group[0].kind == "repair") == [1] * 4 + [4, 8]
    assert all(len(group) == 1 for group in plan(nodes, together=False))


def test_the_clean_model_of_an_attack_is_added_once_by_the_plan(nodes):
    groups = plan(nodes, together=False)
    names = [node.name for group in groups for node in group]
    assert len(names) == len(set(names))
    assert names.count("clean/seed0/train") == 1 and "clean/seed0/train" not in {
        node.name for node in nodes
    }


def test_a_repair_shares_the_inversions_of_a_detection_with_equal_settings(nodes):
    (mcl,) = [node for node in nodes if node.name == "badnets/seed0/mcl-code"]
    (detection,) = [node for node in nodes if node.name == "badnets/seed0/detection@inversion-nc"]
    assert mcl.detected is detection.evidence
    assert mcl.inverted.needs["detected"] is mcl.detected


def test_parts_hold_every_model_once_and_detections_with_their_inversions(nodes):
    parts = [part_of(nodes, i, 3) for i in (1, 2, 3)]
    names = [node.name for part in parts for node in part if not node.analysis]
    assert names == [node.name for node in nodes if not node.analysis]
    for part in parts:
        assert {node.kind for node in part if node.analysis} <= {"model_detection"}
        assert all(node.evidence in part for node in part if node.analysis)
    detections = [node.name for part in parts for node in part if node.analysis]
    assert detections == [node.name for node in nodes if node.kind == "model_detection"]


def test_names_folders_and_recipes_are_unique(nodes):
    models = [node for node in nodes if not node.analysis]
    recipes = [(node.kind, node.digest, node.run.label) for node in models]
    for values in ([node.name for node in nodes], [node.folder for node in models], recipes):
        assert len(values) == len(set(values))


def test_two_different_nodes_of_one_name_are_refused(tmp_path):
    context = studies.opened(studies.read(TINY), tmp_path)
    known = graph._Graph(context, graph.make_methods(context))
    victim, repair, *_ = map(known.one, graph.make_nodes(context))
    assert known.one(victim) is victim
    clash = dataclasses.replace(
        repair, choice=dataclasses.replace(repair.choice, label=victim.what)
    )
    with pytest.raises(ConfigError, match="'train' names a backdoored model and a repair"):
        known.one(clash)


TINY = """
dataset: {name: synthetic, size: 8, classes: 3, train: 96, test: 30}
model: small
train: {steps: 8, batch_size: 16}
reserved: {count: 32}
defenses: [{name: d3, schedule: {steps: 4, batch_size: 16}}]
"""


def test_an_analysis_is_computed_once(tmp_path, monkeypatch):
    studies.run(studies.read(TINY), tmp_path)
    monkeypatch.setattr(SamplesNode, "analyse", lambda *_: pytest.fail("analysed again"))
    studies.run(studies.read(TINY), tmp_path)


def test_a_failed_analysis_fails_no_other_node_and_leaves_a_record(tmp_path, monkeypatch, capsys):
    def broken(node, inputs):
        raise TypeError("a mistake in the code")

    monkeypatch.setattr(SamplesNode, "analyse", broken)
    rows = studies.run(studies.read(TINY), tmp_path)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    record = artifacts.read_record(tmp_path, "badnets/seed0/samples@none")
    assert record.status == "failed: TypeError: a mistake in the code"
    assert "samples@none failed: TypeError" in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()


def test_an_error_in_findings_fails_only_its_node(tmp_path, monkeypatch):
    def broken(node, inputs, artifact):
        raise KeyError("no such column")

    monkeypatch.setattr(RepairNode, "findings", broken)
    none, repaired = studies.run(studies.read(TINY), tmp_path)
    assert none["status"] == "ok" and repaired["status"].startswith("failed: KeyError")


def test_a_record_of_other_settings_is_not_shown(tmp_path):
    studies.run(studies.read(TINY), tmp_path)
    longer = studies.read(TINY, ("defenses.0.schedule.steps", "6"))
    context = studies.opened(longer, tmp_path)
    from d3jax.study.run import make_manifest

    artifacts.write_manifest(tmp_path, make_manifest(context, graph.make_nodes(context)))
    run = artifacts.RunFolder(tmp_path)
    assert run.record("badnets/seed0/train") and run.record("badnets/seed0/d3-code") is None
    assert artifacts.read_record(tmp_path, "badnets/seed0/d3-code").status == "ok"


def test_a_deleted_model_is_not_finished_in_the_tables(tmp_path):
    studies.run(studies.read(TINY), tmp_path)
    (model,) = tmp_path.glob("checkpoints/*d3-code*/model")
    shutil.rmtree(model)
    rows = studies.run(studies.read(TINY), tmp_path, compute=False)
    table = tables.read_csv(tmp_path / "results.csv")
    for row in (rows[1], table[1]):
        assert row["status"] == "not finished: no model yet" and row["acc"] is None


def test_a_run_folder_of_another_layout_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(DataError, match="written by an earlier d3jax: run its config again"):
        artifacts.RunFolder(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="layout 99, this d3jax reads 2"):
        artifacts.RunFolder(tmp_path)


FAILING = TINY.replace("defenses: [{name: d3, ", "defenses: [{name: finetune, ") + (
    "detections: [{name: inversion, preset: nc, passes: 2, batches: 2}]\n"
)


def test_a_failed_detection_has_a_row_in_a_part_too(tmp_path, monkeypatch, capsys):
    def broken(node, inputs, hooks):
        raise RuntimeError("no memory")

    monkeypatch.setattr(EvidenceNode, "compute", broken)
    rows = studies.run(studies.read(FAILING), tmp_path, part=(1, 1))
    status = {row["defense"]: row["status"] for row in rows}
    assert status["inversion-nc"] == "failed: RuntimeError: no memory"
    assert status["none"] == status["finetune"] == "ok"


def test_a_report_in_a_new_folder_has_the_metrics_of_the_cache(tmp_path):
    config = studies.read(TINY, ("cache", str(tmp_path / "cache")))
    studies.run(config, tmp_path / "first")
    studies.run(config, tmp_path / "second", compute=False)
    read = [
        artifacts.RunFolder(tmp_path / name).metrics("badnets/seed0/train")
        for name in ("first", "second")
    ]
    assert read[0] and read[0] == read[1]


PREPARED = TINY.replace("model: small", "model: small\nattacks: [{name: lf, steps: 3}]")


@pytest.mark.slow
def test_a_damaged_victim_of_a_prepared_attack_is_computed_by_the_second_run(tmp_path, capsys):
    config = studies.read(PREPARED)
    first = studies.run(config, tmp_path)
    (model,) = tmp_path.glob("checkpoints/*-lf-victim-*/model")
    for path in model.rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.warns(UserWarning, match="computing it again"):
        damaged = studies.run(config, tmp_path)
    assert "its trigger was not read; run the same command again" in damaged[0]["status"]
    again = studies.run(config, tmp_path)
    assert [row["acc"] for row in again] == [row["acc"] for row in first]
