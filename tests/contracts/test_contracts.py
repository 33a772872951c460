"""Contract tests of every registered attack, model, data set and defence, and broken ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.attacks import ATTACKS, badnets
from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.types import (
    Batch,
    DataInfo,
    InputDetector,
    Repair,
    Repaired,
    SampleDetector,
    Scored,
    Trained,
)
from d3jax.defenses import (
    INPUT_DETECTORS,
    MODEL_DETECTORS,
    REPAIRS,
    SAMPLE_DETECTORS,
    TRAINING_DEFENSES,
    abl,
    d3,
    finetune,
)
from d3jax.inversion import InversionConfig

from ..helpers.small import small_model

INFO = DataInfo("rgb", (16, 16, 3), tuple("abcd"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (28, 28, 1), tuple("abcdefg"), (0.5,), (0.25,))
SHORT = {"steps": 30, "batch_size": 50, "augment": "none"}


def entry(registry, name, **settings):
    """Return an entry's config, with those of the given settings that it has, and constructor."""
    config, construct = registry[name]
    known = {field.name for field in dataclasses.fields(config)}
    values = {key: value for key, value in settings.items() if key in known}
    if "schedule" in values:
        values["schedule"] = dataclasses.replace(config().schedule, **values["schedule"])
    return config(**values), construct


NETWORKS = ("input_aware", "ssba", "lira", "poison_ink")
"""Attacks that run only compiled here, because they take minutes without compilation."""
ROUNDED = {"bpp": 1 / 255, "wanet": 1e-5, "refool": 1.01 / 255}
"""Tolerance between a compiled and an eager stamp, for attacks that round or resample."""
SMALL = {
    "width": 2,
    "rate": 0.1,
    "cover_rate": 0.1,
    "cover_classes": [2, 3],
    "window": 4,
    "positions": [[1, 1], [3, 3]],
    "channels": [0],
}
"""Settings of attacks for 60 images of few classes; an attack takes those that it has."""
NONE = ("clean", "unknown")
"""Registered entries without a trigger to stamp: the control and an unknown trigger."""


@pytest.mark.parametrize("info", [INFO, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "released"])
def test_attacks_keep_the_contract(name, info):
    config, construct = entry(ATTACKS, name, **SMALL)
    attack, compiled = construct(config, info), name in NETWORKS
    testing.check_attack(attack, info, tolerance=ROUNDED.get(name, 1e-6), eager=not compiled)
    assert bool(attack.eligible(jnp.arange(60) % info.num_classes).any()) == (name not in NONE)
    if compiled:
        return
    images, own = jax.random.uniform(jax.random.key(1), (6, *info.shape)), jnp.arange(6) % 2 == 0
    trigger = attack.init(jax.random.key(3))
    stamped = attack.stamp(trigger, images)
    assert name in NONE or not jnp.array_equal(stamped, images)
    covers = jnp.arange(6) == 1 if attack.covers else None
    given = Batch(images, jnp.arange(6) % 4, own, rows=jnp.arange(6), covers=covers)
    batch = attack.poison(trigger, jax.random.key(2), given)
    if attack.covers or name == "narcissus":  # training images have another trigger
        changed, second = (batch.images != images).any((1, 2, 3)), attack.covers is not None
        assert changed.tolist() == [True, second, True, False, True, False]
    elif attack.per_batch_rate is None:
        chosen = jnp.where(own[:, None, None, None], stamped, images)
        np.testing.assert_array_equal(batch.images, chosen)
    else:
        assert int(batch.poisoned.sum()) <= 1  # 10 % of 6 rows, at the start of the batch


def test_the_small_model_keeps_the_contract():
    """tests/models/test_models.py checks the registered models."""
    testing.check_model(small_model(INFO), INFO)


REMOVES = {"nc": 0.8}
"""Repairs that remove the fixture's backdoor in so few steps, and the ASR that they reach.

tests/defenses checks others with more steps.
"""
MAPS = {"layers": ("out0", "out1"), "betas": (500.0, 1000.0)}
OWN = {
    "d3": {"start": "near"},
    "nad": MAPS | {"teacher": ScheduleConfig(**SHORT, optimizer=OptimConfig())},
}
"""Settings of some repairs that suit the fixture's small net."""
QUICK = InversionConfig(preset="nc", batches=2, passes=20)


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_keep_the_contract(name, fixture):
    """CLP and FP are known to keep the backdoor.

    They find no channel or feature that belongs only to this trigger.
    """
    given = {"schedule": SHORT, "target": 0, "inversion": QUICK} | OWN.get(name, {})
    config, construct = entry(REPAIRS, name, **given)
    repair = construct(config, fixture.dataset.info)
    testing.check_repair(repair, fixture, asr=REMOVES.get(name, 1.0), drop=0.3)


RECIPE = {"steps": 30, "batch_size": 50, "optimizer": OptimConfig(lr=0.05)}
PARTS = {
    **dict.fromkeys(("isolate", "supervised", "biased", "pseudo", "head", "virtual"), RECIPE),
    **dict.fromkeys(("finetune", "train"), RECIPE | {"steps": 40}),
    "relearn": RECIPE | {"steps": 4},
    "separation": {"first": RECIPE, "intra": RECIPE | {"steps": 4}},
    "simclr": RECIPE | {"dimension": 16},
    "classifier": RECIPE,
    "unlearn": {"steps": 4, "batch_size": 20},
    "semi": {"steps": 40, "batch_size": 20},
}
"""Shortened parts of training-time defences."""
ONE_EPOCH = {"class_aware": 1, "class_agnostic": 1, "meta": 1, "seeds": 4, "semi": {"steps": 14}}
LENGTHS = {"asd": ONE_EPOCH, "dlp": {"trials": 0}, "d_st": {"warm_up": 0}}
"""Settings of single defences. Each trial of DLP would repeat its stage 2."""


def shortened(config, parts):
    """Replace the settings that a config has; a dict describes a part of it."""
    known = {key: value for key, value in parts.items() if hasattr(config, key)}
    return dataclasses.replace(
        config,
        **{
            key: shortened(getattr(config, key), value) if isinstance(value, dict) else value
            for key, value in known.items()
        },
    )


@pytest.mark.parametrize("name", TRAINING_DEFENSES)
def test_training_defenses_keep_the_contract(name, fixture):
    """The check asks only for accuracy after so few steps.

    tests/defenses checks that they remove the backdoor.
    """
    config, construct = entry(TRAINING_DEFENSES, name)
    config = shortened(shortened(config, PARTS), LENGTHS.get(name, {}))
    testing.check_training_defense(construct(config, fixture.dataset.info), fixture, acc=0.3)


@pytest.mark.parametrize("name", SAMPLE_DETECTORS)
def test_sample_detectors_keep_the_contract(name, fixture):
    stage = {"abl_isolation": "isolate", "dlp_filter": "supervised"}.get(name)
    made, construct = entry(SAMPLE_DETECTORS, name, orders=(1, 2), inner_steps=2, steps=3)
    if stage:
        recipe = dataclasses.replace(getattr(made, stage), steps=5, batch_size=50)
        made = dataclasses.replace(made, **{stage: recipe})
    detector = construct(made, fixture.dataset.info)
    testing.check_sample_detector(detector, fixture)


BRIEF = ScheduleConfig(steps=4, batch_size=50, augment="none", optimizer=OptimConfig())
"""A short training of the models of an input detector."""


@pytest.mark.parametrize("name", INPUT_DETECTORS)
def test_input_detectors_keep_the_contract(name, fixture):
    given = {"overlays": 20, "expert": BRIEF, "partner": BRIEF, "corruptions": ("contrast", "jpeg")}
    config, construct = entry(INPUT_DETECTORS, name, **given)
    testing.check_input_detector(construct(config, fixture.dataset.info), fixture)


@pytest.mark.parametrize("name", MODEL_DETECTORS)
def test_model_detectors_keep_the_contract(name, fixture):
    given = {"steps": 60, "passes": 20, "batches": 2, "width": 2, "warm_up": 1}
    if name == "feature_re":
        given |= {"passes": 2, "batch_size": 50}
    config, construct = entry(MODEL_DETECTORS, name, **given)
    testing.check_model_detector(construct(config, fixture.dataset.info), fixture)


def test_the_data_set_of_the_fixture_keeps_the_contract(fixture):
    testing.check_dataset(fixture.dataset)


# ------------------------------------------------------------------------------- broken entries

ATTACK = badnets(rate=0.1).build(INFO)


def poison_all(trigger, key, batch):
    """Poison as the attack does, and change the images of clean rows too."""
    poisoned = ATTACK.poison(trigger, key, batch)
    return poisoned._replace(images=1 - poisoned.images)


BROKEN_ATTACKS = {
    "leaves": ATTACK._replace(stamp=lambda trigger, images: images + 1),
    "shape": ATTACK._replace(stamp=lambda trigger, images: images[:, 1:]),
    "float32": ATTACK._replace(stamp=lambda trigger, images: images.astype(jnp.float16)),
    "no class": ATTACK._replace(relabel=lambda labels: jnp.full_like(labels, 9)),
    "want bool": ATTACK._replace(eligible=lambda labels: labels),
    "not eligible": ATTACK._replace(eligible=lambda labels: labels == 1),
    "clean rows": ATTACK._replace(poison=poison_all),
    "labels are not": ATTACK._replace(
        poison=lambda trigger, key, batch: batch._replace(labels=batch.labels * 0 + 2)
    ),
    "joint": ATTACK._replace(optimizer=object()),
}


@pytest.mark.parametrize("words", BROKEN_ATTACKS)
def test_broken_attacks_are_found(words):
    with pytest.raises(AssertionError, match=words):
        testing.check_attack(BROKEN_ATTACKS[words], INFO)


def test_an_attack_whose_trigger_differs_between_calls_is_found():
    triggers = iter((np.zeros(1), np.ones(1)))
    with pytest.raises(AssertionError):
        testing.check_attack(ATTACK._replace(init=lambda key: next(triggers)), INFO)


def test_broken_repairs_are_found(fixture):
    def broken(make):
        return Repair(lambda key, model, variables, reserved, hooks: make(key, variables))

    scaled = functools.partial(jax.tree.map, lambda leaf: leaf * 0)
    cases = {
        "returned a tuple": broken(lambda key, variables: (variables,)),
        "ACC 1.000 → ": broken(lambda key, variables: Repaired(scaled(variables), {})),
        "not finite|finite": broken(
            lambda key, variables: Repaired(jax.tree.map(lambda x: x / 0, variables), {})
        ),
    }
    for words, repair in cases.items():
        with pytest.raises(AssertionError, match=words):
            testing.check_repair(repair, fixture)
    kept = broken(lambda key, variables: Repaired(variables, {}))
    testing.check_repair(kept, fixture)
    with pytest.raises(AssertionError, match="want at most 0.5"):
        testing.check_repair(kept, fixture, asr=0.5)
    draws = iter(range(9))

    def drifting(key, variables):
        moved = 1e-3 * next(draws)
        return Repaired(jax.tree.map(lambda x: x + moved, variables), {})

    with pytest.raises(AssertionError):
        testing.check_repair(broken(drifting), fixture)


def test_broken_training_defenses_are_found(fixture):
    stage = dataclasses.replace(abl().isolate, steps=1, batch_size=50)
    whole = abl(isolate=stage).build(fixture.dataset.info)._replace(found=lambda size: {})
    draws = iter(range(9))

    def broken(make):
        return whole._replace(train=lambda key, model, data, begun, hooks: make(begun))

    def scaled(begun, factor):
        return jax.tree.map(lambda leaf: leaf * factor, begun)

    cases = {
        "returned a tuple": lambda begun: (begun,),
        "finite": lambda begun: Trained(scaled(begun, np.nan), {}, {}),
        "found: ": lambda begun: Trained(begun, {"suspects": np.zeros(3, bool)}, {}),
        "ACC ": lambda begun: Trained(scaled(begun, 0), {}, {}),
        "not equal": lambda begun: Trained(scaled(begun, next(draws)), {}, {}),
    }
    for words, make in cases.items():
        with pytest.raises(AssertionError, match=words):
            testing.check_training_defense(broken(make), fixture)
    kept = broken(lambda begun: Trained(fixture.variables, {}, {}))
    testing.check_training_defense(kept, fixture)
    with pytest.raises(AssertionError, match="want at most 0.5"):
        testing.check_training_defense(kept, fixture, asr=0.5)


def test_broken_detectors_are_found(fixture):
    size = len(fixture.samples.labels)

    def scoring(scores, flagged=None):
        flags = np.zeros(size, bool) if flagged is None else flagged
        return SampleDetector(lambda *given: Scored(scores(), flags))

    rng = np.random.default_rng(0)
    cases = {
        "shape": scoring(lambda: np.zeros(3, np.float32)),
        "want float32": scoring(lambda: np.zeros(size)),
        "NaN": scoring(lambda: np.full(size, np.nan, np.float32)),
        "flagged": scoring(lambda: np.zeros(size, np.float32), np.zeros(size)),
        "AUROC 0.500, want at least 0.9": scoring(lambda: np.zeros(size, np.float32)),
    }
    for words, detector in cases.items():
        with pytest.raises(AssertionError, match=words):
            testing.check_sample_detector(detector, fixture, auroc=0.9)
    with pytest.raises(AssertionError):
        testing.check_sample_detector(scoring(lambda: rng.random(size, np.float32)), fixture)
    config, construct = entry(INPUT_DETECTORS, next(iter(INPUT_DETECTORS)), overlays=5)
    whole = construct(config, fixture.dataset.info)

    def by_batch(model, variables, state, images):
        return jnp.arange(len(images), dtype=jnp.float32) + len(images)

    with pytest.raises(AssertionError):
        testing.check_input_detector(
            InputDetector(whole.prepare, by_batch, whole.threshold), fixture
        )


def test_check_refuses_accepts_only_the_expected_refusal(fixture):
    check = d3(tensors="nobody/*").build(fixture.dataset.info).check
    check = functools.partial(check, fixture.model, fixture.variables, 100)
    testing.check_refuses(check, words="matches none")
    with pytest.raises(AssertionError, match="nothing was refused"):
        testing.check_refuses(lambda: None, words="matches")
    with pytest.raises(AssertionError, match="does not say"):
        testing.check_refuses(check, words="batches")


def test_scores_of_a_detector_do_not_depend_on_the_poison_flags(fixture):
    """The fixture with all poison flags inverted has the same scores."""
    config, construct = next(iter(SAMPLE_DETECTORS.values()))
    detector = construct(config(), fixture.dataset.info)
    first = testing.check_sample_detector(detector, fixture)
    turned = fixture._replace(poisoned=~fixture.poisoned)
    np.testing.assert_array_equal(
        first.scores, testing.check_sample_detector(detector, turned).scores
    )
    assert finetune().build(fixture.dataset.info).needs == ()
