"""Tests of filtering: what is left out, where the detector's model comes from, and clear errors."""

import dataclasses

import jax
import numpy as np
import pytest

from d3jax import testing
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import SampleDetector, Scored
from d3jax.defenses import ABLConfig, filter, sample_detection
from d3jax.training.loop import Hooks, fit

SHORT = TrainConfig(
    steps=200, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05, schedule="constant")
)


def knowing(fixture, monkeypatch, flags):
    """Register a detector `knowing` that flags the rows `flags`; return what it was given."""
    seen = {}

    def score(key, model, variables, samples, reserved, hooks=Hooks()):
        seen.update(variables=variables, samples=samples, reserved=reserved)
        return Scored(flags.astype(np.float32), flags)

    def make(config, info):
        return SampleDetector(score)

    monkeypatch.setitem(
        sample_detection.SAMPLE_DETECTORS, "knowing", (sample_detection.SpectralConfig, make)
    )
    return seen


def test_a_model_trained_without_the_flagged_samples_has_no_backdoor(fixture, monkeypatch):
    seen = knowing(fixture, monkeypatch, fixture.poisoned)
    defense = filter(detector="knowing", train=SHORT).build(fixture.dataset.info)
    found = testing.check_training_defense(defense, fixture, asr=0.3, acc=0.9)
    np.testing.assert_array_equal(found.found["suspects"], fixture.poisoned)
    np.testing.assert_array_equal(found.found["labelled"], ~fixture.poisoned)
    assert seen["reserved"] is fixture.reserved and seen["samples"] is fixture.samples
    begun = fit(defense.begin(jax.random.key(1), fixture.model, fixture.samples))[0].variables
    jax.tree.map(np.testing.assert_array_equal, seen["variables"], begun)


def test_a_detector_that_flags_nothing_leaves_the_backdoor(fixture, monkeypatch):
    knowing(fixture, monkeypatch, fixture.poisoned & False)
    defense = filter(detector="knowing", train=SHORT).build(fixture.dataset.info)
    found = testing.check_training_defense(defense, fixture)
    assert fixture.evaluate(fixture.model, found.variables).asr > 0.8


def test_a_detector_with_a_first_stage_replaces_the_first_training(fixture):
    stage = dataclasses.replace(ABLConfig().isolate, steps=3, batch_size=50)
    settings = {"isolate": {"steps": 3, "batch_size": 50}, "ratio": 0.05}
    made = filter(detector="abl_isolation", settings=settings, train=SHORT)
    defense = made.build(fixture.dataset.info)
    begun = fit(defense.begin(jax.random.key(1), fixture.model, fixture.samples))[0]
    assert int(begun.step) == stage.steps
    short = dataclasses.replace(made, train=dataclasses.replace(SHORT, steps=2))
    found = short.build(fixture.dataset.info).train(
        jax.random.key(1), fixture.model, fixture.samples, begun.variables,
        reserved=fixture.reserved,
    )  # fmt: skip
    assert found.found["suspects"].sum() == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": "spectra"}, "detector: 'spectra' is not a sample detector: .*did you mean"),
        ({"settings": {"percent": 3}}, "settings.percent: unknown key 'percent'"),
        ({"settings": {"percentile": 300}}, "percentile"),
    ],
)
def test_an_unknown_detector_or_setting_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        filter(**settings)


def test_too_few_images_are_refused(fixture, monkeypatch):
    defense = filter(train=SHORT).build(fixture.dataset.info)
    testing.check_refuses(
        defense.check, fixture.model, None, 50, 10, words="train.batch_size: 64 is more than the 50"
    )
    knowing(fixture, monkeypatch, np.arange(400) > 9)
    defense = filter(detector="knowing", train=SHORT).build(fixture.dataset.info)
    with pytest.raises(ConfigError, match="knowing: leaves 10 of 400 images, want at least"):
        defense.train(
            jax.random.key(1), fixture.model, fixture.samples, fixture.variables,
            reserved=fixture.reserved,
        )  # fmt: skip
