"""Tests of plug-ins: methods that other distributions add through entry points.

A plug-in's methods appear in d3jax's registries and run in studies.
"""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from d3jax.core.errors import ConfigError
from d3jax.results.tables import read_csv
from d3jax.study import registries

MODULE = '''
import dataclasses

import jax.numpy as jnp
import numpy as np

import d3jax


@dataclasses.dataclass(frozen=True)
class StripesConfig:
    """Stripes added to the whole image."""

    rate: float = d3jax.option(0.2, "share of the training images", above=0, high=1)
    strength: float = d3jax.option(0.3, "of the stripes", above=0, high=1)
    __post_init__ = d3jax.check_fields


def make_stripes(config, info):
    base = d3jax.badnets(rate=config.rate).build(info)
    wave = config.strength * (jnp.arange(info.shape[1]) % 2)[None, None, :, None]

    def stamp(trigger, images):
        return jnp.clip(images + wave, 0, 1).astype(images.dtype)

    poison = d3jax.poison_rows(stamp, base.relabel)
    return base._replace(stamp=stamp, poison=poison, init=lambda key: {})


@dataclasses.dataclass(frozen=True)
class BrightConfig:
    """Bright samples are suspicious."""


def make_bright(config, info):
    def score(key, model, variables, samples, reserved, hooks=None):
        scores = np.asarray(samples.images, np.float32).mean((1, 2, 3))
        return d3jax.Scored(scores, scores > np.quantile(scores, 0.8))

    return d3jax.SampleDetector(score)


STRIPES, BRIGHT = (StripesConfig, make_stripes), (BrightConfig, make_bright)
'''

ENTRY_POINTS = """[d3jax.attacks]
stripes = plugged:STRIPES

[d3jax.detections]
bright = plugged:BRIGHT
"""

STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 200, test: 60, noise: 0.15}
model: small
attacks: [stripes]
train: {steps: 8, batch_size: 32, augment: none}
reserved: {count: 40}
detections: [bright]
defenses: []
"""


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """Return a folder with an installed distribution that has an attack and a detector."""
    (tmp_path / "plugged.py").write_text(MODULE)
    info = tmp_path / "plugged-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_an_attack_and_a_detector_of_a_plug_in_run_in_a_study(plugged, monkeypatch):
    (plugged / "study.yaml").write_text(STUDY)
    monkeypatch.setenv("PYTHONPATH", str(plugged))
    command = [sys.executable, "-m", "tests.helpers.small", "--config", plugged / "study.yaml"]
    done = subprocess.run(
        [*map(str, command), "--workdir", str(plugged / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_csv(plugged / "run" / "samples.csv")
    assert (row["attack"], row["detection"]) == ("stripes", "bright") and row["auroc"] > 0.5
    (result,) = read_csv(plugged / "run" / "results.csv")
    assert result["attack"] == "stripes" and result["asr"] is not None


def test_the_contract_suite_runs_on_a_plug_ins_entries(plugged, fixture):
    from d3jax import testing
    from d3jax.core.types import DataInfo

    found = registries.with_plugins("attacks", {})
    config, construct = found["stripes"]
    info = DataInfo("rgb", (12, 12, 3), tuple("abcd"), (0.5,) * 3, (0.25,) * 3)
    testing.check_attack(construct(config(), info), info)
    config, construct = registries.with_plugins("detections", {})["bright"]
    testing.check_sample_detector(construct(config(), fixture.dataset.info), fixture)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("plugged:MISSING", "plug-in plugged:MISSING .d3jax.attacks.: AttributeError"),
        ("plugged:MODULE_OF_NOBODY.x", "AttributeError"),
        ("nobody:X", "ModuleNotFoundError"),
        ("plugged:jnp", "TypeError|want a pair"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_is_named(plugged, monkeypatch, value, words):
    points = [EntryPoint("mine", value, "d3jax.attacks")]
    monkeypatch.setattr(registries.importlib.metadata, "entry_points", lambda group: points)
    with pytest.raises(ConfigError, match=words):
        registries.with_plugins("attacks", {})


def test_a_plug_in_cannot_take_a_name_of_the_package(monkeypatch):
    points = [EntryPoint("badnets", "plugged:STRIPES", "d3jax.attacks")]
    monkeypatch.setattr(registries.importlib.metadata, "entry_points", lambda group: points)
    with pytest.raises(ConfigError, match="the name 'badnets' is taken"):
        registries.with_plugins("attacks", registries.ATTACKS)
