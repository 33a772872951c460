"""Tests of two processes that train one model together over the loopback interface.

They have the numbers of one process, also after they are killed and resumed.
"""

import csv
import json
import signal
import subprocess
import sys

import pytest

from d3jax.core.errors import ConfigError
from d3jax.runtime.distributed import bring_up, broadcast_from_host0, is_primary
from d3jax.runtime.sharding import copies

from ..helpers.killing import CLI, kill_when, logged, results, start, unbroken, until
from ..helpers.studies import logged_loops


@pytest.mark.slow
def test_two_processes_match_one_process_and_resume_together(tmp_path):
    config = tmp_path / "cli.yaml"
    config.write_text(CLI)
    environment = {"D3JAX_CACHE": str(tmp_path / "cache")}
    unbroken(config, tmp_path / "one", environment)
    unbroken(config, tmp_path / "two", environment, count=2)
    killed = tmp_path / "killed"
    kill_when(
        lambda: logged(killed, "badnets/seed0/train", '"step": 10'),
        config,
        killed,
        environment,
        count=2,
    )
    assert "continues at step" in unbroken(config, killed, environment, count=2)
    assert results(killed) == results(tmp_path / "two")
    for alone, together in zip(results(tmp_path / "one"), results(tmp_path / "two"), strict=True):
        assert float(together["acc"]) == pytest.approx(float(alone["acc"]), abs=0.07)
    nodes = [f"badnets/seed0/{what}" for what in ("train", "d3-code")]
    losses = [
        [record["loss"] for node in nodes for record in logged_loops(tmp_path / name)[node]]
        for name in ("one", "two")
    ]
    assert losses[1][:5] == pytest.approx(losses[0][:5], rel=1e-4) and len(losses[0]) == len(
        losses[1]
    )
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["devices"] == 2


@pytest.mark.slow
def test_two_processes_invert_the_same_triggers_as_one(tmp_path):
    config = tmp_path / "search.yaml"
    config.write_text(
        CLI + "detections: [{name: inversion, batches: 2, batch_size: 16, passes: 30}]\n"
    )
    environment = {"D3JAX_CACHE": str(tmp_path / "cache")}
    found = []
    for count in (1, 2):
        unbroken(config, tmp_path / str(count), environment, count=count)
        with (tmp_path / str(count) / "evidence.csv").open() as file:
            found.append(list(csv.DictReader(file)))
    alone, together = found
    assert len(alone) == len(together) == 3
    for one, two in zip(alone, together, strict=True):
        assert one["flagged"] == two["flagged"]
        assert float(two["norm"]) == pytest.approx(float(one["norm"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "codes"), [(signal.SIGKILL, (1, -9)), (signal.SIGINT, (75, 75))])
def test_a_process_ends_when_the_other_one_dies_or_is_stopped(tmp_path, sent, codes):
    (tmp_path / "cli.yaml").write_text(CLI)
    environment = {"D3JAX_CACHE": str(tmp_path / "cache")}
    first, second = start(
        tmp_path / "cli.yaml",
        tmp_path / "out",
        environment,
        2,
        more=2 * [["--train.steps", "9999"]],
    )
    until(lambda: logged(tmp_path / "out", "badnets/seed0/train", '"step": 10'), [first, second])
    second.send_signal(sent)
    said, _ = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == codes
    ends = {1: "run all of them again to continue", 75: "it continues from here"}
    assert said.splitlines()[-1].endswith(ends[codes[0]])


@pytest.mark.slow
def test_processes_with_different_settings_stop_before_any_work(tmp_path):
    (tmp_path / "cli.yaml").write_text(CLI)
    both = start(tmp_path / "cli.yaml", tmp_path / "out", {}, 2, more=[[], ["--train.steps", "7"]])
    for process in both:
        said, _ = process.communicate(timeout=120)
        assert (
            process.returncode == 2
            and "the settings of process 1 are not those of process 0" in said
        )
    assert not (tmp_path / "out").exists()


def test_waiting_for_other_processes_times_out():
    code = "from d3jax.runtime import distributed; distributed.PATIENCE = 1; "
    code += "distributed.bring_up('localhost:1,2,1')"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(
        "not all processes have come within 1 s"
    )


def test_a_single_process_is_primary_and_broadcasts_to_itself():
    assert (
        is_primary() and broadcast_from_host0([3, 1]) == [3, 1] and copies("anything") == "anything"
    )


@pytest.mark.parametrize("where", ["tpu", "localhost,2,0", "localhost:1,2,2"])
def test_malformed_addresses_of_processes_are_refused(where):
    with pytest.raises(ConfigError, match="want auto or HOST:PORT,COUNT,INDEX"):
        bring_up(where)
