"""Tests of prepared detectors: scores after a file, single inputs, and files that are refused."""

import json

import jax
import numpy as np
import pytest

from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.errors import CheckpointError, ConfigError
from d3jax.core.types import Model, Outputs, Variables
from d3jax.defenses import load_detector, prepare_detector
from d3jax.defenses.input_detection import INPUT_DETECTORS
from d3jax.defenses.input_detection.serving import ABOUT
from d3jax.interop import write_tensors
from d3jax.models import black_box

NOTHING = Variables({}, {})
SHORT = ScheduleConfig(steps=2, batch_size=50, optimizer=OptimConfig())
SETTINGS = {
    "strip": {"overlays": 10},
    "sentinet": {"overlays": 10},
    "badexpert": {"expert": SHORT, "partner": SHORT},
    "teco": {"corruptions": ("contrast", "brightness")},
}


def prepared(name, fixture, model=None, variables=None):
    config = INPUT_DETECTORS[name][0](**SETTINGS.get(name, {}))
    given = (model or fixture.model, variables or fixture.variables, fixture.reserved)
    return prepare_detector(config, fixture.dataset.info, jax.random.key(0), *given)


@pytest.mark.parametrize("name", INPUT_DETECTORS)
def test_a_loaded_detector_gives_the_same_scores_also_for_one_input(name, fixture, tmp_path):
    detector, images = prepared(name, fixture), np.asarray(fixture.dataset.test.images[:6])
    detector.save(tmp_path / "detector.safetensors")
    again = load_detector(tmp_path / "detector.safetensors", fixture.model, fixture.variables)
    assert again.config == detector.config and again.info == detector.info
    scores = detector.score(images)
    np.testing.assert_array_equal(again.score(images), scores)
    np.testing.assert_allclose(again.score(images[:1]), scores[:1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(again.reject(images), scores > detector.threshold)


@pytest.mark.parametrize("name", ["strip", "scale_up", "teco"])
def test_a_black_box_has_the_scores_of_its_model(name, fixture):
    """The model is linear, so that it can be computed in JAX and in NumPy."""
    images = np.asarray(fixture.dataset.test.images[:6])
    weights = np.random.default_rng(0).normal(size=(images[0].size, 4)).astype(np.float32)

    def linear(images):
        return images.reshape(len(images), -1) @ weights

    def apply(variables, images, *, train):
        return Outputs(linear(images), {}, {})

    known = Model(lambda key: NOTHING, apply)
    found = [
        prepared(name, fixture, model, NOTHING).score(images)
        for model in (known, black_box(linear, 4))
    ]
    np.testing.assert_allclose(*found, atol=1e-4)
    assert np.ptp(found[0]) > 0


def test_detectors_that_read_more_refuse_a_black_box(fixture):
    box = black_box(lambda images: np.zeros((len(images), 4)), 4)
    for name, words in (("ibd_psc", "BatchNorm"), ("sentinet", "activations")):
        with pytest.raises(ConfigError, match=words):
            prepared(name, fixture, box, NOTHING)


def test_other_files_are_refused(fixture, tmp_path):
    given = (fixture.model, fixture.variables)
    with pytest.raises(ConfigError, match=r"want a name that ends in .safetensors"):
        prepared("strip", fixture).save(tmp_path / "detector.pkl")
    with pytest.raises(CheckpointError, match="no such file"):
        load_detector(tmp_path / "none.safetensors", *given)
    cases = {
        "holds no input detector": {},
        "description of the detector is damaged": {ABOUT: "{}"},
        "'other' is not one of strip": {
            ABOUT: json.dumps(
                {
                    "name": "other",
                    "settings": {},
                    "info": {
                        "name": "a",
                        "shape": [2, 2, 1],
                        "classes": ["a", "b"],
                        "mean": [0.5],
                        "std": [0.5],
                    },
                }
            )
        },
    }
    for words, header in cases.items():
        file = tmp_path / "file.safetensors"
        write_tensors(file, {"a": np.zeros(2)}, header)
        with pytest.raises(CheckpointError, match=words):
            load_detector(file, *given)
