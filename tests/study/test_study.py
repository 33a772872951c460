"""Tests of whole studies on a tiny problem: rows, files, reuse, failures, parts and sweeps.

They also check that damaged and killed studies resume to the same numbers.
"""

import csv
import json
import shutil

import pytest

from d3jax.core.errors import ConfigError, OutOfMemoryError
from d3jax.study import attack_run, executor
from d3jax.study.graph import make_nodes
from d3jax.study.nodes import victim
from d3jax.training import fit_ensemble

from ..helpers import studies
from ..helpers.killing import CLI, kill_when, logged, numbers, results, unbroken
from ..helpers.studies import TINY


def read(text=TINY, *overrides):
    return studies.read(text, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder and the rows of a finished study."""
    folder = tmp_path_factory.mktemp("study") / "tiny"
    rows = studies.run(read(), folder)
    with studies.unchanged(folder):
        yield folder, rows


def test_a_finished_study_has_its_rows_and_files(finished):
    folder, rows = finished
    assert [row["defense"] for row in rows] == ["none", "finetune", "d3-code"]
    none, _, d3 = rows
    assert (
        none["acc"] > 0.9
        and none["asr"] > 0.9
        and d3["asr"] < none["asr"] - 0.5
        and none["der"] is None
    )
    assert (none["n_clean"], none["n_triggered"], none["poison_rate"]) == (130, 130 - 33, 0.1)
    assert d3["published"].startswith("90.77") and none["published"] == "none" and d3["cosine"] < 0
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:13] == [
        "dataset",
        "model",
        "attack",
        "poison_rate",
        "defense",
        "seed",
        "acc",
        "asr",
        "ra",
        "der",
        "n_clean",
        "n_triggered",
        "seconds",
    ]
    assert float(table[2]["asr"]) == d3["asr"] and table[0]["der"] == ""
    for name in ("config.yaml", "environment.json", "study.json", "report.html", "figures"):
        assert (folder / name).exists(), name
    assert read((folder / "config.yaml").read_text()) == read()
    assert set(studies.logged_loops(folder)) == {
        f"badnets/seed0/{name}" for name in ("train", "finetune", "d3-code")
    }
    assert not list(folder.glob("checkpoints/*/steps"))
    assert {row["status"] for row in rows} == {"ok"} and rows[0]["device"] == "cpu"


def test_a_rerun_computes_nothing_again(finished, tmp_path, monkeypatch):
    folder, rows = shutil.copytree(finished[0], tmp_path / "copy"), finished[1]
    monkeypatch.setattr(victim, "victim_loop", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(
        attack_run, "make_evaluate", lambda *_: lambda *_: pytest.fail("evaluated again")
    )
    again = studies.run(read(), folder)
    assert again == rows


def test_a_changed_repair_reuses_the_victim_and_the_other_repairs(finished, tmp_path, monkeypatch):
    folder, rows = shutil.copytree(finished[0], tmp_path / "copy"), finished[1]
    monkeypatch.setattr(victim, "victim_loop", lambda *_: pytest.fail("trained again"))
    more = studies.run(read(TINY, ("defenses.0.schedule.steps", "5")), folder)
    assert (
        numbers(more)[0] == numbers(rows)[0]
        and numbers(more)[2] == numbers(rows)[2]
        and numbers(more)[1] != numbers(rows)[1]
    )


def recipe_of(folder, *overrides):
    """Return the recipe of the study's victim, which determines its hash."""
    return make_nodes(studies.opened(read(TINY, *overrides), folder))[0].run.recipe


@pytest.mark.parametrize(
    "override",
    [
        ("seeds", "[1]"),
        ("attack_seed", "3"),
        ("attacks.0.size", "2"),
        ("attacks.0.rate", "0.2"),
        ("model.width", "32"),
        ("train.steps", "7"),
        ("train.optimizer.lr", "0.1"),
        ("dataset.noise", "0.2"),
        ("precision", "bfloat16"),
    ],
)
def test_settings_that_change_the_victim_are_in_its_hash(tmp_path, override):
    assert recipe_of(tmp_path, override) != recipe_of(tmp_path)


@pytest.mark.parametrize(
    "override", [("loop.log_every", "3"), ("reserved.count", "70"), ("attacks.0.label", "other")]
)
def test_settings_that_do_not_change_the_victim_are_not_in_its_hash(tmp_path, override):
    unnamed = ("published", "{}")
    assert recipe_of(tmp_path, unnamed, override) == recipe_of(tmp_path)


def test_the_content_of_a_pattern_file_is_in_the_hash(tmp_path):
    from PIL import Image

    attacks = ("attacks", f"[{{name: blended, label: badnets, image: {tmp_path}/p.png}}]")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "p.png")
    red = recipe_of(tmp_path, attacks)
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "p.png")
    assert recipe_of(tmp_path, attacks) != red


def test_a_repair_that_diverges_is_a_row_and_does_not_stop_the_others(finished, tmp_path):
    folder, rows = finished
    shutil.copytree(folder, tmp_path / "copy")
    config = read(TINY, ("defenses.0.schedule.optimizer.lr", "1e30"))
    none, broken, d3 = studies.run(config, tmp_path / "copy")
    assert (
        broken["status"].startswith("failed: ")
        and broken["acc"] is None
        and broken["defense"] == "finetune"
    )
    assert numbers([none, d3]) == [numbers(rows)[0], numbers(rows)[2]]
    assert "failed" in (tmp_path / "copy" / "report.html").read_text()


def test_a_repair_of_the_wrong_return_type_fails_and_names_the_wanted_type(
    finished, tmp_path, monkeypatch
):
    from d3jax.core.types import Repair
    from d3jax.study.registries import DEFENSES

    def broken(config, info):
        return Repair(lambda key, model, variables, reserved, hooks: variables)

    monkeypatch.setitem(DEFENSES, "finetune", (DEFENSES["finetune"][0], broken))
    shutil.copytree(finished[0], tmp_path / "copy")
    config = read(TINY, ("defenses.0.label", "mine"))
    _, mine, _ = studies.run(config, tmp_path / "copy")
    assert mine["status"].endswith(
        "mine: repair returned a Variables; want d3jax.Repaired(variables, trace)"
    )


def test_a_model_that_diverges_fails_its_repairs_and_nothing_else(tmp_path, capsys):
    attacks = "[{name: badnets, rate: 0.1}, {name: clean, label: other}]"
    config = read(
        TINY,
        ("attacks", attacks),
        ("defenses", "[{name: d3, schedule: {steps: 5}}]"),
        ("train.optimizer.lr", "1e30"),
    )
    rows = studies.run(config, tmp_path)
    assert [row["status"].partition(" ")[0] for row in rows] == ["failed:"] * 4
    assert (
        "the loss became" in rows[0]["status"]
        and rows[1]["status"] == "failed: its backdoored model failed"
    )
    assert capsys.readouterr().err.count("d3jax: badnets/seed0/train failed: the loss became") == 1
    (note,) = tmp_path.glob("checkpoints/*badnets*/failed.json")
    assert "DivergedError" in json.loads(note.read_text())["traceback"]
    again = studies.run(config, tmp_path, compute=False)
    assert [row["status"] for row in again] == [row["status"] for row in rows]


def test_a_node_that_breaks_does_not_stop_the_others(finished, tmp_path, monkeypatch, capsys):
    from d3jax.defenses.repair.common import one_loop
    from d3jax.study.registries import DEFENSES

    def broken(config, info):
        def loop(*_):
            raise TypeError("a mistake in the code")

        return one_loop(loop)

    monkeypatch.setitem(DEFENSES, "finetune", (DEFENSES["finetune"][0], broken))
    shutil.copytree(finished[0], tmp_path / "copy")
    config = read(TINY, ("defenses.0.schedule.steps", "3"))
    _, row, other = studies.run(config, tmp_path / "copy")
    assert row["status"] == "failed: TypeError: a mistake in the code" and other["status"] == "ok"
    assert "failed.json" in capsys.readouterr().err


def test_parts_of_a_study_make_the_whole(finished, tmp_path, capsys):
    """Run a study in two parts, with a report after each.

    The first report lists the nodes of the second part as not finished.
    """
    _, rows = finished

    def share(i):
        return studies.run(read(), tmp_path, part=(i, 2))

    assert [row["defense"] for row in share(1)] == ["none"]
    assert not (tmp_path / "results.csv").exists()
    early = studies.run(read(), tmp_path, compute=False)
    assert [row["status"] for row in early] == [
        "ok",
        "not finished: no model yet",
        "not finished: no model yet",
    ]
    capsys.readouterr()
    assert [row["defense"] for row in share(2)] == ["finetune", "d3-code"]
    # The output also shows the other part's model, which the changes refer to.
    assert "backdoor works" in capsys.readouterr().out
    whole = studies.run(read(), tmp_path, compute=False)
    assert numbers(whole) == numbers(rows) and (tmp_path / "report.html").exists()


def test_a_report_with_other_settings_is_refused_and_keeps_the_results(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    before = (tmp_path / "copy" / "results.csv").read_text()

    def report(*overrides):
        return studies.run(read(TINY, *overrides), tmp_path / "copy", compute=False)

    with pytest.raises(
        ConfigError, match="--report: train.steps is 60 here and 120 in .*config.yaml"
    ):
        report(("train.steps", "60"))
    with pytest.raises(ConfigError, match="--report: seeds.1 is 3 here and missing in"):
        report(("seeds", "[0, 3]"))
    assert (tmp_path / "copy" / "results.csv").read_text() == before
    assert report(("loop.log_every", "7"))[0]["status"] == "ok"


@pytest.mark.slow
def test_a_failed_member_or_too_little_memory_does_not_stop_its_group(tmp_path, monkeypatch):
    """Check that the other members run if one has no loop and the group exceeds the memory.

    One of three settings has no loop. The group is halved until it fits the memory.
    """
    from d3jax.defenses.repair.common import one_loop
    from d3jax.study.registries import DEFENSES

    make, together = DEFENSES["d3"][1], []

    def broken(config, info):
        def loop(*words):
            if config.lam == 3:
                raise TypeError("not this one")
            return make(config, info).loop(*words)

        return one_loop(loop)

    def small_memory(loops, every_hooks):
        together.append(len(loops))
        if len(loops) > 1:
            raise OutOfMemoryError("too many")
        return fit_ensemble(loops, every_hooks)

    monkeypatch.setitem(DEFENSES, "d3", (DEFENSES["d3"][0], broken))
    monkeypatch.setattr(executor, "fit_ensemble", small_memory)
    overrides = (
        ("defenses", "[{name: d3, sweep: {lam: [1, 2, 3]}, schedule: {steps: 4}}]"),
        ("train.steps", "8"),
    )
    rows = studies.run(
        read(TINY, ("published", "{}"), ("loop.members", "together"), *overrides),
        tmp_path,
    )
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed: TypeError: not this one"]
    assert together == [1, 2, 1, 1] and {row["members"] for row in rows[:3]} == {1}


def test_a_report_leaves_damaged_models_in_place(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    (model,) = (tmp_path / "copy" / "checkpoints").glob("*d3-code*/model")
    for file in model.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    rows = studies.run(read(), tmp_path / "copy", compute=False)
    assert (
        "cannot be read" in rows[2]["status"]
        and model.is_dir()
        and not list(model.parent.glob("*.damaged"))
    )


SWEEP = (
    "[{name: d3, sweep: {lam: [0.5, 2], schedule.optimizer.lr: [0.01, 0.02]}, "
    "schedule: {steps: 12}}]"
)


@pytest.mark.slow
def test_a_sweep_has_the_same_numbers_together_and_apart(tmp_path):
    """Check that an ensemble gives the numbers of separate runs.

    Two seeds and four settings of D3 are eight members of one program. The two backdoored models
    are two members of another.
    """
    overrides = (
        ("seeds", "[0, 1]"),
        ("defenses", SWEEP),
        ("published", "{}"),
        ("train.steps", "30"),
    )
    rows = {}
    for members in ("together", "apart"):
        config = read(TINY, *overrides, ("loop.members", members))
        rows[members] = studies.run(config, tmp_path / members)
    labels = [f"d3-code-lam{lam}-lr{lr}" for lam in ("0.5", "2") for lr in ("0.01", "0.02")]
    assert [row["defense"] for row in rows["apart"]] == 2 * ["none", *labels]
    assert [row["members"] for row in rows["together"]] == 2 * [2, 8, 8, 8, 8]
    assert {row["members"] for row in rows["apart"]} == {1}
    for one, other in zip(rows["together"], rows["apart"], strict=True):
        assert one["acc"] == pytest.approx(other["acc"], abs=0.02) and one["asr"] == pytest.approx(
            other["asr"], abs=0.05
        )
        if one["cosine"] is not None:
            assert one["cosine"] == pytest.approx(other["cosine"], abs=1e-3)
    # A run apart finds the models of the run together, because their folders are the same.
    assert numbers(studies.run(read(TINY, *overrides), tmp_path / "together")) == numbers(
        rows["together"]
    )


@pytest.mark.parametrize("sweep", ["[1]", "{}", "{lam: 3}", "{lam: []}"])
def test_malformed_sweeps_are_refused(sweep):
    with pytest.raises(ConfigError, match="defenses.0.sweep: want a mapping of settings to lists"):
        read(TINY, ("defenses", f"[{{name: d3, sweep: {sweep}}}]"), ("published", "{}"))
    with pytest.raises(ConfigError, match="unknown key 'lamm'.*did you mean 'lam'.*in its sweep"):
        read(TINY, ("defenses", "[{name: d3, sweep: {lamm: [1]}}]"), ("published", "{}"))


def test_an_invalid_setting_leaves_the_config_of_a_finished_study_unchanged(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ConfigError):
        studies.run(read(TINY, ("attacks.0.target", "9")), folder)
    assert (folder / "config.yaml").read_text() == before


def test_counts_per_class_add_up_to_the_rates(finished):
    folder, rows = finished
    with (folder / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 * 4
    mine = [row for row in table if row["defense"] == "d3-code"]
    total = {
        name: sum(int(row[name]) for row in mine)
        for name in ("clean", "correct", "triggered", "reached")
    }
    assert (
        total["correct"] / total["clean"] == rows[2]["acc"]
        and total["reached"] / total["triggered"] == rows[2]["asr"]
    )


@pytest.mark.parametrize("damage", ["model", "nothing finished"])
def test_a_damaged_or_deleted_model_is_computed_again(finished, tmp_path, damage):
    folder, rows = finished
    shutil.copytree(folder, tmp_path / "copy")
    (model,) = (tmp_path / "copy" / "checkpoints").glob("*d3-code*/model")
    if damage == "model":
        for file in model.rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.warns(UserWarning, match="computing it again"):
            again = studies.run(read(), tmp_path / "copy")
    else:
        shutil.rmtree(model)
        again = studies.run(read(), tmp_path / "copy")
    assert numbers(again) == numbers(rows)


def test_seeds_with_one_attack_seed_share_the_victim_and_repair_it_differently(tmp_path):
    config = read(
        TINY,
        ("seeds", "[0, 1]"),
        ("attack_seed", "0"),
        ("defenses", "[{name: d3, schedule: {steps: 30}}]"),
    )
    rows = studies.run(config, tmp_path)
    assert [(row["seed"], row["defense"]) for row in rows] == [
        (0, "none"),
        (0, "d3-code"),
        (1, "none"),
        (1, "d3-code"),
    ]
    assert set(studies.logged_loops(tmp_path)) == {
        "badnets/seed0/train",
        "badnets/seed0/d3-code",
        "badnets/seed1/d3-code",
    }
    assert rows[0]["acc"] == rows[2]["acc"] and rows[1]["cosine"] != rows[3]["cosine"]


def test_the_clean_control_has_no_asr(tmp_path):
    config = read(
        TINY, ("attacks", "[clean]"), ("defenses", "[]"), ("published", "{}"), ("train.steps", "20")
    )
    (row,) = studies.run(config, tmp_path)
    assert (
        row["asr"] is None
        and row["poison_rate"] == 0
        and row["n_triggered"] == 0
        and row["acc"] > 0.3
    )


@pytest.mark.slow
def test_a_study_killed_at_three_moments_resumes_to_the_same_numbers(tmp_path):
    """Compare a study killed three times with an uninterrupted one.

    SIGKILL comes when the first checkpoint is written, in the training and in the repair.
    """
    config = tmp_path / "cli.yaml"
    config.write_text(CLI)
    environment = {"D3JAX_CACHE": str(tmp_path / "cache")}
    unbroken(config, tmp_path / "whole", environment)
    killed = tmp_path / "killed"
    moments = [
        lambda: list(killed.glob("checkpoints/*/steps/*")),
        lambda: logged(killed, "badnets/seed0/train", '"step": 26'),
        lambda: logged(killed, "badnets/seed0/d3-code", '"step": 10'),
    ]
    for moment in moments:
        kill_when(moment, config, killed, environment)
    said = unbroken(config, killed, environment)
    assert "continues at step" in said
    assert results(killed) == results(tmp_path / "whole")
