"""Tests that a wheel and an sdist hold all that a study needs outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = (
    "d3jax/py.typed",
    "d3jax/__init__.pyi",
    "d3jax/report/style.css",
    "d3jax/report/sort.js",
    "d3jax/report/d3jax.mplstyle",
    "d3jax/report/templates/page.html.j2",
)

STUDY = """
dataset: {name: digits, size: 8}
model: {name: wide_resnet, depth: 10}
train: {steps: 2, batch_size: 64}
defenses: []
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both archives, and return their folder."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_both_archives_hold_templates_styles_and_types(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert set(NEEDED) <= inside
    templates = {
        f"d3jax/report/templates/{path.name}"
        for path in (ROOT / "d3jax/report/templates").iterdir()
    }
    assert templates <= inside
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {*NEEDED, *templates, "LICENSE", "README.md", "pyproject.toml"} <= names


def test_an_installed_wheel_runs_a_study_and_makes_its_page_elsewhere(built, tmp_path):
    """A new environment has only the wheel, and uses the dependencies of this environment."""
    (wheel,) = built.glob("*.whl")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "study.yaml").write_text(STUDY)
    # PYTHONPATH reads no .pth file, so this checkout's editable install is not seen.
    environment = os.environ | {
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "JAX_PLATFORMS": "cpu",
    }

    def run(*words):
        done = subprocess.run(
            [python, *words],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path) in run("-c", "import d3jax; print(d3jax.__file__)")
    run("-m", "d3jax.run", "--config", "study.yaml")
    page = elsewhere / "runs" / "study" / "report.html"
    before = page.read_bytes()
    page.unlink()
    run("-m", "d3jax.report", "runs/study")
    assert page.read_bytes() == before and b"<style>" in before
