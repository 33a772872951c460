"""Tests of the files of a run folder: altered content, obstacles and full disks."""

import errno
import os

import numpy as np
import pytest

from d3jax.core.errors import StorageError
from d3jax.runtime import checkpoint, files
from d3jax.runtime.commands import exit_code


@pytest.mark.parametrize(
    "text", ["123", "null", "[]", "{", "[" * 10_000, '{"a": ' + "9" * 5000 + "}", "", "\x00"]
)
def test_a_sealed_file_that_was_changed_reads_as_none(tmp_path, text):
    path = tmp_path / "a" / "record.json"
    content = {"b": [1.5, None, float("nan")], "a": {"c": "ü"}}
    files.write_sealed(path, content)
    assert str(files.read_sealed(path)) == str(content)
    path.write_text(text)
    assert files.read_sealed(path) is None


def test_a_sealed_file_with_one_changed_number_reads_as_none(tmp_path):
    files.write_sealed(tmp_path / "record.json", {"acc": 0.25})
    text = (tmp_path / "record.json").read_text()
    (tmp_path / "record.json").write_text(text.replace("0.25", "0.75"))
    assert files.read_sealed(tmp_path / "record.json") is None


def test_files_and_folders_in_the_way_are_renamed_and_kept(tmp_path):
    (tmp_path / "nodes").write_text("a file")
    with pytest.warns(UserWarning, match="is not a folder: it was renamed to nodes.damaged"):
        files.write_text(tmp_path / "nodes" / "x" / "record.json", "1")
    (tmp_path / "results.csv" / "inside").mkdir(parents=True)
    with pytest.warns(UserWarning, match="is not a file"):
        files.write_text(tmp_path / "results.csv", "2")
    assert (tmp_path / "nodes.damaged").read_text() == "a file"
    assert (tmp_path / "results.csv.damaged" / "inside").is_dir()
    (tmp_path / "results.csv").rename(tmp_path / "kept")
    (tmp_path / "results.csv").mkdir()
    assert files.set_aside(tmp_path / "results.csv").name == "results.csv.damaged1"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_gives_a_one_line_error(tmp_path, capsys, code):
    def work():
        raise OSError(code, os.strerror(code), str(tmp_path / "results.csv"))

    assert exit_code(work) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"d3jax: {tmp_path}/results.csv: cannot be written") and "\n" == said[-1]
    assert said.count("\n") == 1 and "same command again" in said


def test_a_checkpoint_that_does_not_fit_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with pytest.raises(StorageError, match="a: cannot be written .No space left on device"):
        checkpoint.save(tmp_path / "a", {})


def test_a_checkpoint_of_another_node_or_step_is_not_loaded(tmp_path):
    tree = {"w": np.ones(2, np.float32)}
    one = checkpoint.Rolling(tmp_path / "one", of={"node": "one"})
    two = checkpoint.Rolling(tmp_path / "two", of={"node": "two"})
    one.save(4, tree, {})
    (tmp_path / "one").rename(tmp_path / "two")
    with pytest.warns(UserWarning, match="it belongs to the node one, not two; going back"):
        assert two.load(4, tree) is None
    two.save(4, tree, {})
    (tmp_path / "two" / "4").rename(tmp_path / "two" / "8")
    with pytest.warns(UserWarning, match="it belongs to the step 4, not 8"):
        assert two.load(8, tree) is None
