"""Tests of the metric writer: metrics.jsonl after interruptions, and sinks without a network."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.results.artifacts import RunFolder, node_folder
from d3jax.results.metric_sinks import check_sinks
from d3jax.results.metric_writer import MetricWriter

from ..helpers.run_folders import result_row, write_run

NAME = "badnets/seed0/none"


def record(step, **metrics):
    return {"step": step, "seconds": 0.1 * step, "loss": 1 / step} | metrics


def lines(run):
    path = node_folder(run, NAME) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(run):
    return [(line["loop"], line["step"]) for line in lines(run)]


def writer(run, *sinks, active=True):
    return MetricWriter(node_folder(run, NAME), sinks, NAME, active)


def test_records_are_read_back_by_the_run_folder(tmp_path):
    write_run(tmp_path, [result_row()])
    writer(tmp_path).write("", record(1, acc=np.float32(0.5), count=np.int64(3)))
    writer(tmp_path).write("stage2", record(2))
    assert RunFolder(tmp_path).metrics(NAME) == [
        {"loop": ""} | record(1, acc=0.5, count=3),
        {"loop": "stage2"} | record(2),
    ]


def test_reset_replaces_the_records_of_a_loop_and_of_the_loops_within_it(tmp_path):
    mine = writer(tmp_path)
    for loop in ("a", "a/inner", "ab", "b"):
        for step in (1, 2):
            mine.write(loop, record(step))
    mine.reset("a", [record(1)])
    assert steps(tmp_path) == [("ab", 1), ("ab", 2), ("b", 1), ("b", 2), ("a", 1)]
    mine.write("a", record(2))
    assert steps(tmp_path)[-1] == ("a", 2)
    mine.reset("", [record(7), record(1, loop="b")])
    assert steps(tmp_path) == [("", 7), ("b", 1)]
    mine.reset("", [])
    assert lines(tmp_path) == []


def test_a_half_line_is_dropped_before_the_next_record(tmp_path):
    write_run(tmp_path, [result_row()])
    writer(tmp_path).write("", record(1))
    path = node_folder(tmp_path, NAME) / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"loop": "", "step": 2, "lo')
    writer(tmp_path).write("", record(3))
    assert [one["step"] for one in RunFolder(tmp_path).metrics(NAME)] == [1, 3]
    writer(tmp_path).reset("other", [])
    assert steps(tmp_path) == [("", 1), ("", 3)]


def test_a_failed_reset_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    mine = writer(tmp_path)
    mine.write("", record(1))

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        mine.reset("", [])
    assert steps(tmp_path) == [("", 1)]


def test_an_inactive_writer_writes_no_file(tmp_path):
    mine = writer(tmp_path, "tensorboard", active=False)
    mine.write("", record(1))
    mine.reset("", [record(1)])
    mine.close()
    assert not list(tmp_path.iterdir())


def test_a_value_that_is_not_a_scalar_raises_type_error(tmp_path):
    with pytest.raises(TypeError, match="object is no value of a log record"):
        writer(tmp_path).write("", record(1, loss=object()))


def test_the_writer_needs_no_jax():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import d3jax.results.metric_writer\n"
        "print(*{'wandb', 'tensorboardX'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "\n", done.stderr


# ------------------------------------------------------------------------------------------- sinks


def test_unknown_and_missing_sinks_are_config_errors(monkeypatch):
    with pytest.raises(ConfigError, match="'tensorbord' is none of tensorboard, wandb"):
        check_sinks(["tensorbord"])
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        wanted = rf"{name} needs {package} .*: install {package} \(the extra {name}\)"
        with pytest.raises(ConfigError, match=wanted):
            check_sinks([name])


def test_sinks_need_the_name_of_the_node(tmp_path):
    with pytest.raises(ValueError, match="need run_name"):
        MetricWriter(tmp_path, ["tensorboard"])


def events(run):
    """Return (tag, step, value) of every scalar in the node's event files."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((run / "tensorboard" / NAME).glob("events.out.tfevents.*")):
        for data in framed(path.read_bytes()):
            event = Event.FromString(data)
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return found


def framed(data: bytes):
    """Yield the records of a TFRecord file: length (8 bytes), checksum (4), data, checksum (4)."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def losses(run, tag="loss"):
    return [(step, pytest.approx(value)) for name, step, value in events(run) if name == tag]


def test_tensorboard_has_every_record_once_also_after_resumes(tmp_path):
    with writer(tmp_path, "tensorboard") as mine:
        mine.reset("", [])
        for step in (1, 2, 3):
            mine.write("", record(step, note="text"))
        mine.write("stage2", record(1))
    with writer(tmp_path, "tensorboard") as mine:  # resumes after step 1
        mine.reset("", [record(1)])
        mine.write("", record(2, loss=0.25))
    with writer(tmp_path, "tensorboard") as mine:  # without a reset
        mine.write("", record(3))
    assert losses(tmp_path) == [(1, 1.0), (2, 0.25), (3, 1 / 3)]
    assert {tag for tag, _, _ in events(tmp_path)} == {"loss", "seconds"}


def test_tensorboard_events_are_rewritten_if_the_last_writer_was_not_closed(tmp_path):
    killed = writer(tmp_path, "tensorboard")
    killed.write("stage2", record(4))
    with writer(tmp_path, "tensorboard") as mine:
        mine.reset("", [record(4, loop="stage2")])
    assert losses(tmp_path, "stage2/loss") == [(4, 0.25)]
    killed.close()


def test_tensorboard_events_of_a_finished_node_are_not_rewritten(tmp_path):
    with writer(tmp_path, "tensorboard") as mine:
        mine.write("", record(1))
    before = sorted((tmp_path / "tensorboard").rglob("*"))
    with writer(tmp_path, "tensorboard") as mine:
        mine.reset("", [record(1)])
    assert sorted((tmp_path / "tensorboard").rglob("*")) == before


def test_tensorboard_asked_for_later_gets_the_earlier_records(tmp_path):
    writer(tmp_path).write("", record(1))
    with writer(tmp_path, "tensorboard") as mine:
        mine.reset("", [record(1)])
    assert losses(tmp_path) == [(1, 1.0)]


class FakeRun:
    """A replacement for the run that wandb.init returns; it records what is logged."""

    def __init__(self, options):
        self.options, self.logged, self.axes, self.finished = options, [], {}, False

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values):
        assert not self.finished
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch):
    """Replace wandb in sys.modules by a fake without a network; return the list of its runs."""
    runs: list[FakeRun] = []

    def init(**options):
        runs.append(FakeRun(options))
        return runs[-1]

    fake = types.ModuleType("wandb")
    fake.init, fake.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return runs


def test_wandb_has_one_run_a_node_and_every_record_once(tmp_path, wandb_runs, monkeypatch):
    with writer(tmp_path, "wandb") as mine:
        for step in (1, 2, 3):
            mine.write("", record(step))
        mine.write("stage2", record(1))
    with writer(tmp_path, "wandb") as mine:  # resumes after step 1; step 2 differs only in time
        mine.reset("", [record(1)])
        mine.write("", record(2, seconds=9.0))
        mine.write("", record(4))
    first, second = wandb_runs
    assert first.options["group"] == tmp_path.name and first.options["name"] == NAME
    assert first.options["id"] == second.options["id"] and second.options["resume"] == "allow"
    assert first.finished and second.finished
    assert [one["step"] for one in first.logged[:3]] == [1, 2, 3]
    assert first.logged[3] == {"stage2/step": 1, "stage2/seconds": 0.1, "stage2/loss": 1.0}
    assert first.axes == {"*": "step", "stage2/*": "stage2/step"}
    assert [one["step"] for one in second.logged] == [4]
    monkeypatch.setenv("WANDB_MODE", "offline")
    with writer(tmp_path, "wandb") as mine:
        mine.reset("", [record(1), record(2), record(4)])
        assert len(wandb_runs) == 2  # all records had been sent
        mine.write("", record(5))
    assert wandb_runs[2].options["resume"] is None


def test_real_wandb_package_logs_offline_without_connections(tmp_path):
    """The real package runs in a process where every connection to another machine fails."""
    pytest.importorskip("wandb")
    code = f"""
import os, socket
from pathlib import Path
os.environ |= {{"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}}
asked = []
def refuse(self, address):
    asked.append(address)
    raise OSError("no network here")
real = socket.socket.connect
def connect(self, address):
    local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
    return real(self, address) if local else refuse(self, address)
socket.socket.connect = connect
from d3jax.results.metric_writer import MetricWriter
run, name = Path({str(tmp_path)!r}), {NAME!r}
both = [MetricWriter(run / "nodes" / one, ["wandb"], one) for one in (name, name + "2")]
for step in (1, 2):
    for one in both:
        one.write("", {{"step": step, "seconds": 0.1, "loss": 1 / step}})
for one in both:
    one.close()
print(asked)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode and "ServicePollForTokenError" in done.stderr:
        pytest.skip("wandb's helper process does not start here")
    assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stderr
    kept = sorted(path.parent.name for path in Path(tmp_path).rglob("run-*.wandb"))
    assert len(kept) == 2 and all(name.startswith("offline-run-") for name in kept)
    assert (tmp_path / "wandb" / NAME / "sent.txt").read_text().count("\n") == 2
