"""Tests of the command line: exit codes, error messages, --list, --check and how it starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from d3jax import run, study
from d3jax.core.errors import ConfigError
from d3jax.runtime import huge_pages

from ..helpers import studies
from ..helpers.studies import TINY


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--config", "experiments/none.yaml"], 2, "experiments/none.yaml: cannot be read"),
        ([], 2, "no --config given"),
        (["--config", "x.yaml", "stray"], 2, "'stray' is not a setting"),
        (["--config", "x.yaml", "--train.epochs"], 2, "--train.epochs has no value"),
        (["--config", "{tiny}", "--train.epohcs", "3"], 2, "--train.epohcs: unknown key"),
        (["--config", "{tiny}", "--trian.epochs", "3"], 2, "--trian.epochs: unknown key 'trian'"),
        (
            ["--config", "{tiny}", "--attacks.0.target", "9"],
            2,
            "attacks: badnets: target: 9 is not a class of synthetic, want 0 to 3",
        ),
        (
            ["--config", "{tiny}", "--attacks.0.target", "9", "--check"],
            2,
            "target: 9 is not a class of synthetic, want 0 to 3",
        ),
        (
            ["--config", "{tiny}", "--train.batch_size", "401"],
            2,
            "train: batch_size: 401 is more than the 400 images",
        ),
        (["--config", "{tiny}", "--workdir", "/proc/x"], 2, "--workdir: /proc/x cannot be made"),
        (
            ["--config", "{tiny}", "--attacks", "[{name: sig, rate: 0.9}]", "--published", "{}"],
            2,
            "asks for 360 images",
        ),
        (
            ["--config", "{tiny}", "--dataset", "{name: npz, path: /no/such.npz}"],
            2,
            "/no/such.npz: no such file",
        ),
        (
            ["--config", "{tiny}", "--defenses", "[{name: d3, tensors: nope}]"],
            2,
            "'nope' matches none",
        ),
        (
            ["--config", "{tiny}", "--reserved.count", "401"],
            2,
            "401 images asked for, the training set has 400",
        ),
        (
            ["--config", "{tiny}", "--dataset.train", "1000000000000"],
            2,
            "1000000000000 training and 130 test images of 12×12×3 take",
        ),
        (
            ["--config", "{tiny}", "--dataset", "{name: digits, size: 800000000}"],
            2,
            "size: 1,797 images of 800000000×800000000 pixels take",
        ),
        (
            ["--config", "{tiny}", "--dataset.classes", "1000000000000"],
            2,
            "prototypes of 1000000000000 classes",
        ),
        (
            ["--config", "{tiny}", "--model", "{name: wide_resnet, width: 1000000}", "--check"],
            2,
            "weights, their gradients and momenta take",
        ),
        (
            [
                "--config",
                "{tiny}",
                "--attacks",
                "[{name: input_aware, mask_batch: 401}]",
                "--published",
                "{}",
            ],
            2,
            "attacks: input_aware: mask_batch: 401 is more than the 400 training images there are",
        ),
        (
            [
                "--config",
                "{tiny}",
                "--attacks",
                "[input_aware]",
                "--dataset.size",
                "18",
                "--published",
                "{}",
            ],
            2,
            "its networks halve an image twice: 18×18 pixels are not multiples of 4",
        ),
        (
            ["--config", "{tiny}", "--workdir", "{tiny}/run", "--check"],
            2,
            "tiny.yaml is no folder)",
        ),
        (
            ["--config", "{tiny}", "--cache", "{tiny}", "--check"],
            2,
            "--cache: {tiny} cannot be made ({tiny} is no folder)",
        ),
        (["--config", "{tiny}", "--part", "3/2"], 2, "want I/N with I from 1 to N"),
        (["--config", "{tiny}", "--part", "-1/2"], 2, "argument --part: expected one argument"),
        (["--config", "{tiny}", "--part", "1/2", "--report"], 2, "leave --part out"),
        (["--config", "{tiny}", "--cache", "{tiny}"], 2, "tiny.yaml cannot be made (File exists)"),
        (
            ["--config", "{tiny}", "--profile", "{tiny}"],
            2,
            "tiny.yaml cannot be made (File exists)",
        ),
        (
            ["--config", "{tiny}", "--distributed", ""],
            2,
            (
                "want auto or HOST:PORT,COUNT,INDEX with a PORT from 1 to 65535 "
                "and INDEX below COUNT, got ''"
            ),
        ),
        (
            ["--config", "{tiny}", "--distributed", "localhost:99999,2,0"],
            2,
            "with a PORT from 1 to 65535",
        ),
        (
            ["--config", "{tiny}", "--distributed", "localhost:9999,2,0", "--train.steps", "x"],
            2,
            "--train.steps: want a whole number",
        ),
        (
            ["--config", "{tiny}", "--train.sweep", "{epochs: [1]}"],
            2,
            "a sweep belongs in an entry of attacks, detections, evolutions or defenses",
        ),
        (["--config", "{tiny}", "--loop.devices", "99"], 2, "99 asked for, there are 4"),
        (["--config", "{tiny}", "--report"], 2, "nothing was computed there"),
        (["--confg", "{tiny}"], 2, "--confg is no option and no setting; did you mean 'config'?"),
        (["--config", "{tiny}", "--workdri", "x"], 2, "did you mean 'workdir'?"),
        (["--config", "{tiny}", "--seeds", "[0]", "--seeds", "[1]"], 2, "--seeds is given twice"),
        (["--list", "badnet"], 2, "did you mean 'badnets'?"),
    ],
)
def test_errors_print_one_line_and_set_the_exit_code(
    tmp_path, capsys, monkeypatch, words, code, message
):
    monkeypatch.setattr(run, "_cache_compilations", lambda: None)
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = [word.replace("{tiny}", str(tmp_path / "tiny.yaml")) for word in words]
    assert run.main(["--workdir", str(tmp_path / "out"), *words]) == code
    errors = capsys.readouterr().err
    if message:
        assert (
            message.replace("{tiny}", str(tmp_path / "tiny.yaml")) in errors
            and len(errors.strip().splitlines()) == 1
            and errors.startswith("d3jax: ")
        )
        assert not Path(tmp_path, "out", "results.csv").exists()


def test_list_prints_the_components_and_check_prints_the_config(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert run.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(
        f"{registry}: {name}" in listed
        for registry, names in study.REGISTRIES.items()
        for name in names
    )
    d3 = listed.partition("defenses: d3")[2]
    # D3 has its own defaults.
    assert "schedule.optimizer.weight_decay 0.0\n" in d3 and "schedule.optimizer.lr 0.01\n" in d3
    assert listed.count("sweep ") >= 4 and "schedule.optimizer.weight_decay 0.0005" in listed
    assert run.main(["--list", "d3"]) == 0
    assert d3.partition("\ndefenses: ")[0].strip() in (one := capsys.readouterr().out)
    assert one.count("defenses: d3\n") == 1 and "detections: " not in one
    assert run.main(["--list", "d4"]) == 2
    assert "no component is called 'd4'; the choices are abl, " in capsys.readouterr().err
    assert run.main(["--config", str(tmp_path / "tiny.yaml"), "--check", "--seeds=[4]"]) == 0
    assert studies.read(capsys.readouterr().out).seeds == (4,)


@pytest.mark.parametrize("platform", ["cuda", "foo", "CPU"])
def test_an_unavailable_platform_is_one_error_line(platform):
    words = [
        sys.executable,
        "-m",
        "d3jax.run",
        "--config",
        "experiments/quickstart.yaml",
        "--check",
    ]
    found = subprocess.run(
        words,
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    message = f"d3jax: JAX_PLATFORMS: '{platform}' is no platform that can compute here"
    assert [line[: len(message)] for line in found.stderr.splitlines()] == [message]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_output_replaces_characters_that_the_encoding_lacks(encoding):
    words = [sys.executable, "-m", "d3jax.run", "--list", "d3"]
    found = subprocess.run(
        words, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False
    )
    assert found.returncode == 0 and b"defenses: d3" in found.stdout and b"?" in found.stdout


def test_a_test_set_of_only_the_target_class_is_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(80) % 4}
    arrays |= {"test_images": images[:9], "test_labels": np.zeros(9, int)}
    np.savez(tmp_path / "set.npz", **arrays)
    config = studies.read(
        TINY, ("dataset", f"{{name: npz, path: {tmp_path / 'set.npz'}}}"), ("reserved.count", "20")
    )
    with pytest.raises(ConfigError, match="attacks: badnets: every test image is of the class"):
        study.check_study(config, tmp_path / "run")


@pytest.mark.parametrize(
    "words",
    [
        ["d3jax/run.py"],
        ["-m", "d3jax.run"],
        ["-c", "from d3jax.run import command; command()"],
        ["-m", "pdb", "-c", "continue", "-m", "d3jax.run"],
        ["-m", "cProfile", "-m", "d3jax.run"],
    ],
)
def test_every_way_to_start_the_program_prints_the_list_without_errors(words):
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, *words, "--list", "digits"],
        cwd=Path(run.__file__).parents[1],
        env=environment,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "datasets: digits" in done.stdout and not done.stderr


def test_a_debugged_program_is_not_restarted_for_huge_pages(monkeypatch):
    def execv(*_):
        raise AssertionError("started again")

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    before = sys.gettrace()
    try:
        sys.settrace(lambda *_: None)
        huge_pages.start_again()
    finally:
        sys.settrace(before)
    assert "GLIBC_TUNABLES" not in os.environ


def test_make_refuses_an_old_python_and_names_the_version_it_needs(tmp_path):
    old = tmp_path / "python"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        "'import sys; sys.version_info = (3, 10); exec(sys.argv[1])' \"$2\"\n"
    )
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path}/venv"],
        cwd=Path(run.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"d3jax needs Python 3.11 or newer, {old} is 3.10" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_too_little_disk_space_is_an_error_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        ConfigError, match=r"3 models and their checkpoints take .* MiB, .* has 0.0 MiB free"
    ):
        study.run_study(studies.read(TINY), tmp_path / "run")
    assert not (tmp_path / "run" / "nodes").exists()


def test_an_unwritable_cache_prints_a_warning_and_is_not_used(monkeypatch, capsys):
    monkeypatch.setenv("D3JAX_CACHE", "/dev/null/cache")
    before = jax.config.jax_compilation_cache_dir
    run._cache_compilations()
    assert jax.config.jax_compilation_cache_dir == before
    errors = capsys.readouterr().err
    assert errors.startswith("d3jax: /dev/null/cache cannot be written (Not a directory)")


def test_a_folder_with_files_of_somebody_else_is_refused_and_left_as_it_is(tmp_path, capsys):
    (tmp_path / "figures").mkdir()
    own = {"config.yaml": "seeds: [0]  # my comment", "results.csv": "1,2", "figures/mine.png": "x"}
    for name, text in own.items():
        (tmp_path / name).write_text(text, encoding="utf8")
    arguments = ["--config", str(tmp_path / "config.yaml"), "--workdir", str(tmp_path)]
    for more in ([], ["--check"], ["--report"]):
        assert run.main([*arguments, *more]) == 2
        said = capsys.readouterr().err
        assert "is not a run folder of d3jax, but holds config.yaml, figures, results.csv" in said
    assert {name: (tmp_path / name).read_text(encoding="utf8") for name in own} == own
    assert len(list(tmp_path.rglob("*"))) == 4


def test_an_empty_workdir_is_one_error_line(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text("seeds: [0]", encoding="utf8")
    assert run.main(["--config", str(path), "--workdir", ""]) == 2
    assert "--workdir: want a folder, got ''" in capsys.readouterr().err
