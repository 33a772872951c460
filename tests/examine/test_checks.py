"""Tests of the checks of an examination and of its conclusions, on a backdoored small model."""

import dataclasses

import jax
import numpy as np
import pytest

from d3jax.core.images import as_float, as_levels
from d3jax.core.types import Split
from d3jax.defenses.model_detection.mmbd import MMBDConfig
from d3jax.examine import Given, examine, write_examination
from d3jax.examine import model as model_checks
from d3jax.examine.checks import Check, highest
from d3jax.examine.conclusions import conclude, suspected
from d3jax.examine.inputs import DETECTORS, FPR, WEAK, chance_of, check_inputs
from d3jax.examine.model import INVERSION, MARGINS, check_model
from d3jax.examine.samples import GRADIENTS, SCAN, check_samples
from d3jax.inversion import InversionConfig

KEY = jax.random.key(0)
TARGET = 0  # the default of badnets


@pytest.fixture
def given(fixture):
    """Return the fixture's model, its poisoned training set, and inputs of which half is triggered.

    The first ten of the inputs are triggered images of other classes than the target.
    """
    test = fixture.dataset.test
    others = np.flatnonzero(np.asarray(test.labels) != TARGET)
    images = np.asarray(test.images)[others[:20]]
    stamped = as_levels(fixture.attack.stamp(fixture.trigger, as_float(images[:10])))
    inputs = np.concatenate([np.asarray(stamped).astype(np.uint8), images[10:]])
    return Given(
        fixture.model,
        fixture.variables,
        fixture.dataset.info,
        fixture.reserved,
        fixture.samples,
        inputs,
        [f"{i}.png" for i in range(len(inputs))],
        [("Model", "a test")],
    )


@pytest.fixture
def short(monkeypatch):
    """Make the checks of the model short."""
    monkeypatch.setattr(model_checks, "QUICK", InversionConfig(passes=4, batches=3))
    monkeypatch.setattr(model_checks, "MMBDConfig", lambda: MMBDConfig(images=2, steps=3))


def test_poisoned_samples_are_found(given, fixture):
    checks = list(check_samples(KEY, given))
    assert [check.method for check in checks] == [SCAN, GRADIENTS]
    scan = checks[0]
    assert scan.level == "found" and scan.target == TARGET
    found = suspected(checks[:1])
    assert (found & fixture.poisoned).sum() > 0.9 * fixture.poisoned.sum()
    assert f"{int(scan.flagged.sum())} of {len(found)} samples" in scan.finding


def test_clean_samples_are_not_suspected(given, fixture):
    clean = Split(*(np.asarray(part)[~fixture.poisoned] for part in fixture.samples))
    scan = next(check_samples(KEY, given._replace(suspects=clean)))
    assert scan.level == "nothing" and not scan.flagged.any()
    assert conclude(given, [scan])[0].text.startswith("No poisoned sample was found.")


def test_triggered_inputs_are_found_and_clean_ones_are_not(given):
    strip = next(check_inputs(KEY, given))
    assert strip.level == "found" and strip.flagged[:10].sum() > strip.flagged[10:].sum()
    alone = next(check_inputs(KEY, given._replace(inputs=given.inputs[10:])))
    assert alone.level == "nothing"


def test_the_model_is_checked_with_and_without_clean_images(given, short):
    checks = list(check_model(KEY, given))
    assert [check.method for check in checks] == [MARGINS, INVERSION]
    assert all(check.level in ("found", "weak", "nothing") for check in checks)
    assert all(len(check.class_scores) == given.info.num_classes for check in checks)
    assert next(iter(checks[1].pictures.values())).dtype == np.uint8
    alone = list(check_model(KEY, given._replace(clean=None)))[1]
    assert alone.level == "not run" and "needs clean images" in alone.finding


def test_too_few_images_are_a_reason_and_not_an_error(given, short):
    few = Split(*(np.asarray(part)[:5] for part in given.clean))
    check = list(check_model(KEY, given._replace(clean=few)))[1]
    assert check.level == "not run" and check.finding.startswith("It could not run: batch_size")


def test_an_inverted_trigger_is_found_only_if_it_works_on_images_that_did_not_shape_it(
    given, monkeypatch
):
    """The size is an outlier in all three cases; the trigger works in the first one only."""
    from d3jax.inversion import Inversion, nothing

    count = given.info.num_classes
    empty = jax.tree.map(lambda leaf: np.repeat(leaf, count, 0), nothing(given.info.shape))
    norms = np.array([3.0, *(40.0 + i for i in range(count - 1))], np.float32)
    found = Inversion(
        np.arange(count, dtype=np.int32),
        empty.trigger,
        norms,
        np.ones(count, np.float32),
        np.ones(count, np.int32),
    )
    detector = model_checks.make_inversion(InversionConfig(), given.info)
    detector = detector._replace(detect=lambda *_: (found, []))
    monkeypatch.setattr(model_checks, "make_inversion", lambda *_: detector)
    levels = {}
    for rate in (0.9, 0.5):
        rates = np.full(count, rate)
        monkeypatch.setattr(model_checks, "success_of", lambda *_, rates=rates: rates)
        levels[rate] = model_checks._inversion(KEY, given, given.clean, InversionConfig()).level
    assert levels == {0.9: "found", 0.5: "weak"}


def test_conclusions_follow_the_highest_level(given):
    weak = Check("model", "A", "weak", "", target=1)
    found = Check("model", "B", "found", "", target=2)
    nothing = Check("model", "C", "nothing", "")
    assert highest([nothing, weak]) == "weak" and highest([]) == "not run"
    name = given.info.classes
    (one,) = conclude(given, [nothing, weak, found])
    assert one.text == f"A backdoor was found in the model. Its target class is {name[2]}."
    (one,) = conclude(given, [nothing, weak])
    assert one.level == "weak" and f"class {name[1]}" in one.text
    (one,) = conclude(given, [nothing])
    assert "does not show that the model is clean" in one.text
    assert "--thorough" in one.advice
    (one,) = conclude(given, [nothing], thorough=True)
    assert "--thorough" not in one.advice and "repair it" in one.advice


def test_a_method_that_needs_batchnorm_says_so(given):
    bare = dataclasses.replace if dataclasses.is_dataclass(given.model) else None
    model = bare(given.model, channels=()) if bare else given.model._replace(channels=())
    checks = {check.method: check for check in check_inputs(KEY, given._replace(model=model))}
    assert set(checks) == set(DETECTORS)
    assert checks["IBD-PSC (amplified BatchNorm, 2024)"].level == "not run"


def test_the_files_hold_what_was_found(given, short, tmp_path):
    checks, conclusions = examine(given)
    page = write_examination(tmp_path / "out", "a model", given, checks, conclusions)
    text = page.read_text(encoding="utf8")
    for one in conclusions:
        assert one.text in text and one.advice in text
    assert text.count("<img ") >= 2 and "{{" not in text
    rows = (tmp_path / "out" / "samples.csv").read_text().splitlines()
    assert len(rows) == len(given.suspects.labels) + 1 and rows[0].startswith("row,label,suspected")
    suspects = sum(row.split(",")[2] == "True" for row in rows[1:])
    assert suspects == suspected([c for c in checks if c.subject == "samples"]).sum() > 0
    assert (tmp_path / "out" / "inputs.csv").read_text().splitlines()[1].startswith("0,0.png,")
    assert (tmp_path / "out" / "examination.json").exists()


@pytest.mark.parametrize(("clean", "size"), [(20, 50), (300, 1000)])
def test_clean_inputs_are_a_weak_sign_no_more_often_than_stated(clean, size, rng):
    trials = 2000
    thresholds = np.quantile(rng.random((trials, clean)), 1 - FPR, axis=1)
    counts = (rng.random((trials, size)) > thresholds[:, None]).sum(1)
    chances = np.array([chance_of(count, size, clean) for count in range(size + 1)])[counts]
    assert (chances <= WEAK).mean() < WEAK + 3 * (WEAK / trials) ** 0.5


def test_a_search_without_triggers_finds_nothing_and_says_so(given, monkeypatch):
    monkeypatch.setattr(model_checks, "QUICK", InversionConfig(passes=1, batches=1, batch_size=10))
    check = list(check_model(KEY, given))[1]
    assert check.level == "nothing" and check.target == -1
    assert "fewer than three classes" in check.finding
