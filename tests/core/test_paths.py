"""Tests of paths that users give."""

import re
from pathlib import Path

import pytest

import d3jax
from d3jax import run
from d3jax.core.errors import ConfigError
from d3jax.core.paths import user_path


def test_a_tilde_expands_to_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_path("x~") == Path("x~") and user_path(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="^cache: '~nobody-here/x': there is no user"):
        user_path("~nobody-here/x", "cache")
    with pytest.raises(ConfigError, match="^path: 'a.x00b' holds a NUL"):
        user_path("a\0b")


def test_environment_variables_expand_and_unset_ones_are_one_error(monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NOPE", raising=False)
    assert user_path("$SCRATCH/x") == user_path("${SCRATCH}/x") == tmp_path / "x"
    assert user_path("5$") == Path("5$")
    for text in ("$NOPE/x", "a/${NOPE}"):
        with pytest.raises(ConfigError, match="cache: .*the environment has no variable"):
            user_path(text, "cache")


def test_no_other_module_expands_a_tilde():
    root = Path(d3jax.__file__).parent
    found = [path for path in root.rglob("*.py") if "expanduser" in path.read_text("utf8")]
    assert found == [root / "core" / "paths.py"]


def test_the_command_line_makes_no_folder_called_tilde(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("dataset: {name: npz, path: ~/none.npz}\nmodel: small\n")
    assert run.main(["--config", "s.yaml", "--workdir", "~/runs", "--check"]) == 2
    assert str(tmp_path / "home" / "none.npz") in capsys.readouterr().err
    for words in (
        ["--config", "~/none.yaml"],
        ["--config", "s.yaml", "--dataset.path", "~nobody/x"],
    ):
        assert run.main([*words, "--check"]) == 2
        assert re.fullmatch("d3jax: .*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_a_path_with_a_part_longer_than_255_bytes_is_refused():
    with pytest.raises(ConfigError, match=r"dataset.path: 'aaa.*has a part of more than 255 bytes"):
        user_path("a" * 256, "dataset.path")
    with pytest.raises(ConfigError, match="more than 255 bytes"):
        user_path(f"/tmp/{'é' * 128}")
    assert user_path("a" * 255).name == "a" * 255
