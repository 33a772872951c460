"""The README tells the truth: its commands parse, its example runs and does what it says."""

import contextlib
import importlib
import inspect
import io
import re
import shlex
from pathlib import Path

import pytest

from d3jax import compare, export, run
from d3jax.config.loading import describe, loads
from d3jax.config.study import StudyConfig
from d3jax.study.run import REGISTRIES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf8")
PROGRAMS = {"report": "d3jax.report.__main__", "compare": "d3jax.compare"}
COMMANDS = re.findall(r"^python -m d3jax\.run (.*)$", TEXT, re.MULTILINE)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_in_the_readme_parses(words, monkeypatch, capsys):
    """As written, except that a study is read and checked, not run (`make demo` and CI run it)."""
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(words, comments=True)
    try:
        assert run.main(arguments if "--list" in arguments else [*arguments, "--check"]) == 0
    except SystemExit as done:  # --help
        assert done.code == 0


def test_the_export_command_is_understood(tmp_path, monkeypatch, capsys):
    """Up to the model, which a clean checkout has not trained."""
    monkeypatch.chdir(ROOT)
    (words,) = re.findall(r"^python -m d3jax\.export (.*)$", TEXT, re.MULTILINE)
    assert export.main([*shlex.split(words, comments=True), "--workdir", str(tmp_path)]) == 2
    assert "badnets/seed0/d3-code is not finished" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["report", "compare"])
def test_the_commands_for_run_folders_are_understood(program, tmp_path, monkeypatch, capsys):
    """Up to the run folder, which a clean checkout has not."""
    monkeypatch.chdir(tmp_path)
    (words,) = re.findall(rf"^python -m d3jax\.{program} (.*)$", TEXT, re.MULTILINE)
    main = importlib.import_module(PROGRAMS[program]).main
    assert main(shlex.split(words, comments=True)) == 2
    assert "d3jax: runs/" in capsys.readouterr().err


def test_the_files_it_names_exist():
    named = re.findall(r"`((?:d3jax|experiments|tests|benchmarks)/[\w./-]+)`", TEXT) + re.findall(
        r"\]\((\w[\w./]*\.md)\)", TEXT
    )
    assert len(named) > 5 and [name for name in named if not (ROOT / name).exists()] == []


def test_every_flag_exists():
    """Flags named anywhere in the text are options of the command line or settings of a study."""
    known = (
        {name for name, _, _ in describe(StudyConfig)}
        | set(re.findall(r'"--(\w+)"', inspect.getsource(run) + inspect.getsource(compare)))
        | {"help"}
    )
    named = re.findall(r"(?<![\w-])--([a-z_][\w.]*)", TEXT)
    assert {name.split(".0.")[0] for name in named} <= known


def test_the_configs_are_understood():
    detections, evolutions, training, sweep, whole = re.findall(
        r"```yaml\n(.*?)```", TEXT, re.DOTALL
    )
    assert loads(whole, registries=REGISTRIES).defenses[1].label == "d3-code"
    shown = loads(detections, registries=REGISTRIES)
    assert len(shown.detections) == 5 and shown.defenses[2].config.detector == "mmbd"
    lineages = loads(evolutions, [("fresh", "0.6")], registries=REGISTRIES).evolutions
    assert [choice.label for choice in lineages] == [
        "constant-lr0.003",
        "constant-lr0.01",
        "constant-lr0.03",
        "sgdr",
    ]
    ours, theirs = (choice.config for choice in loads(training, registries=REGISTRIES).defenses)
    assert (
        ours.unlearn.steps,
        ours.unlearn.optimizer.lr,
        theirs.unlearn.kind,
        theirs.semi.method,
    ) == (
        10,
        1e-4,
        "uniform",
        "fixmatch",
    )
    config = loads(sweep, registries=REGISTRIES)
    assert len(config.defenses) == 6 and config.defenses[0].label == "d3-code-lam0.1-lr0.003"


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE)) <= targets


@pytest.mark.slow
def test_the_library_examples_do_what_they_say():
    code = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    *repair, few = printed.getvalue().splitlines()
    (acc, asr), (acc_after, asr_after) = [
        map(float, re.search(r"ACC (\S+)  ASR (\S+)", line).groups()) for line in repair
    ]
    assert acc > 0.9 and asr > 0.9 and asr_after < 0.1 and acc_after > acc - 0.05
    assert float(few.rsplit(" ", 1)[1]) > 0.8
