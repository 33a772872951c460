"""Tests of NAB: its stamp, pseudo-labels, loss and filter, and the network that it gives."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.attacks import badnets
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import Batch, DataInfo, Model, Outputs, Split, Variables
from d3jax.data import synthetic
from d3jax.defenses import ABLConfig
from d3jax.defenses.training_time import nab
from d3jax.defenses.training_time.nab import NABConfig, pseudo_labels, relabelled
from d3jax.defenses.training_time.stamped import Stamp, put_on, rejected, stamped, stamped_loss
from d3jax.metrics.attack_success import triggered_split
from d3jax.training.loop import Hooks, fit
from d3jax.training.poisoned_set import poisoned_split

from ..helpers.small import small_model

KEY = jax.random.key(3)
INFO = DataInfo("some", (16, 16, 3), ("a", "b", "c"), (0.4, 0.5, 0.6), (0.2,) * 3, 2, True)
RATE = OptimConfig(lr=0.05, schedule="constant")
SHORT = TrainConfig(steps=200, batch_size=64, augment="none", optimizer=RATE)
NAB = NABConfig(
    ratio=0.1,
    isolate=dataclasses.replace(SHORT, steps=40),
    pseudo=dataclasses.replace(SHORT, steps=100, batch_size=50),
    train=SHORT,
)


@pytest.fixture(scope="module")
def plenty():
    """Return a `Fixture` with more poison than the shared one; its model is untrained."""
    settings = {"size": 12, "channels": 3, "classes": 4, "train": 400, "test": 130, "noise": 0.1}
    dataset = synthetic(**settings).build()
    model, attack = small_model(dataset.info), badnets(rate=0.15).build(dataset.info)
    samples, flags = poisoned_split(KEY, attack, dataset.train)
    rows = np.flatnonzero(~flags)[:100]
    reserved = Split(*(np.asarray(part)[rows] for part in dataset.train))
    trigger, variables = attack.init(KEY), model.init(KEY)
    return testing.Fixture(model, dataset, attack, variables, trigger, samples, flags, reserved)


def test_presets_have_the_published_numbers():
    authors, bench, short = (NABConfig(preset=one) for one in ("authors", "backdoorbench", "short"))
    assert authors == NABConfig()
    assert (authors.gamma, authors.ratio, authors.side, authors.drops) == (0.5, 0.05, 2, (0.2, 0.6))
    parts = ("isolate", "pseudo", "train")
    assert [getattr(authors, part).epochs for part in parts] == [20, 100, 100]
    assert [getattr(short, part).epochs for part in parts] == [3, 40, 15]
    assert [getattr(authors, part).optimizer.lr for part in parts] == [0.1, 0.01, 0.1]
    assert {getattr(authors, part).batch_size for part in parts} == {64}
    for part in parts:
        rate = getattr(authors, part).optimizer
        assert (rate.momentum, rate.nesterov, rate.weight_decay) == (0.9, False, 1e-4)
    assert [getattr(authors, part).augment for part in parts] == ["none", "cutout", "cutout"]
    assert authors.train.optimizer.schedule == "cosine_epoch"
    assert (bench.ratio, bench.train.batch_size, bench.isolate.batch_size) == (0.1, 256, 64)
    assert bench.train.optimizer == OptimConfig(weight_decay=1e-4, schedule="constant")
    assert bench.isolate.optimizer == OptimConfig(schedule="constant")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stamp_is_0_in_normalised_space_and_keeps_other_pixels(channels, rng):
    info = dataclasses.replace(
        INFO, shape=(6, 5, channels), mean=INFO.mean[:channels], std=INFO.std[:channels]
    )
    images = rng.random((4, 6, 5, channels)).astype(np.float32)
    copy = images.copy()
    found = np.asarray(put_on(nab.stamp_of(NABConfig(), info), images))
    normalised = (found - np.asarray(info.mean)) / np.asarray(info.std)
    np.testing.assert_allclose(normalised[:, :2, :2], 0, atol=1e-6)
    inside = np.zeros((6, 5), bool)
    inside[:2, :2] = True
    np.testing.assert_array_equal(found[:, ~inside], images[:, ~inside])
    np.testing.assert_array_equal(images, copy)


def test_suspects_get_their_pseudo_labels_and_a_stamp_if_the_label_changes():
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    found, marked = relabelled(labels, np.array([1, 2, 4]), np.array([1, 0, 2]))
    assert found.tolist() == [0, 1, 0, 0, 2] and found.dtype == np.int32
    assert marked.tolist() == [False, False, True, False, True]
    assert labels.tolist() == [0, 1, 2, 0, 1]


def brightness_model():
    """Return a model with one weight: logits (0, w (first pixel − 0.5)), and a count of passes."""

    def init(key):
        return Variables({"w": jnp.float32(8)}, {"passes": jnp.float32(0)})

    def apply(variables, images, *, train):
        sure = variables.params["w"] * (images[:, 0, 0, 0] - 0.5)
        stats = {"passes": variables.batch_stats["passes"] + train}
        return Outputs(jnp.stack([0 * sure, sure], 1), {"images": images}, stats)

    return Model(init, apply)


def test_the_loss_stamps_the_marked_rows_only():
    model, stamp = brightness_model(), Stamp(2, (0.9,))
    images = np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1, 1) * np.ones((3, 4, 4, 1))
    batch = Batch(
        jnp.asarray(images, jnp.float32), jnp.array([1, 1, 0]), jnp.zeros(3, bool),
        rows=jnp.array([4, 0, 2]),
    )  # fmt: skip
    data = SimpleNamespace(loss_inputs=jnp.array([False, True, True, True, True]))
    variables = model.init(KEY)
    value, (stats, reported) = stamped_loss(model, stamp)(*variables, batch, KEY, data)
    sure = 8 * (np.array([0.9, 0.2, 0.9]) - 0.5)  # rows 4 and 2 are stamped
    wanted = np.log1p(np.exp(np.where([True, True, False], -sure, sure))).mean()
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    assert float(reported["accuracy"]) == pytest.approx(1 / 3) and float(stats["passes"]) == 1


def test_pseudo_labels_are_those_of_stamped_images():
    model, images = brightness_model(), np.array([30, 220], np.uint8).reshape(2, 1, 1, 1)
    images = np.broadcast_to(images, (2, 4, 4, 1))
    variables = model.init(KEY)
    assert pseudo_labels(model, variables, images).tolist() == [0, 1]
    assert pseudo_labels(stamped(model, Stamp(2, (0.9,))), variables, images).tolist() == [1, 1]


def test_the_filter_rejects_images_whose_prediction_the_stamp_changes():
    model, images = brightness_model(), np.array([30, 220], np.uint8).reshape(2, 1, 1, 1)
    images = np.broadcast_to(images, (2, 4, 4, 1))
    found = rejected(model, stamped(model, Stamp(2, (0.9,))), model.init(KEY), images)
    assert found.tolist() == [True, False]


def test_the_first_stage_is_that_of_abl_with_the_same_recipe(fixture):
    info, recipe = fixture.dataset.info, dataclasses.replace(SHORT, steps=3)
    ours = NABConfig(isolate=recipe, gamma=0.7).build(info)
    abl = ABLConfig(isolate=recipe, gamma=0.7, loss="flooding").build(info)
    assert ours.settings == abl.settings
    ends = [fit(one.begin(KEY, fixture.model, fixture.samples))[0] for one in (ours, abl)]
    jax.tree.map(np.testing.assert_array_equal, *(one.variables for one in ends))


def test_the_isolation_loss_turns_upwards_below_gamma():
    """|L − γ| + γ with a γ above the loss is 2γ − L, so a step raises L."""
    info = DataInfo("grey", (4, 4, 1), ("dark", "bright"), (0.5,), (0.2,))
    levels = np.array([30, 60, 140, 220], np.uint8).reshape(4, 1, 1, 1)
    data = Split(np.tile(levels, (1, 4, 4, 1)), np.array([0, 1, 1, 0], np.int32))
    sure = 8 * (levels.ravel() / 255 - 0.5)
    plain = np.log1p(np.exp(np.where(data.labels == 1, -sure, sure))).mean()
    for gamma, wanted in ((5.0, 10 - plain), (0.0, plain)):
        recipe = dataclasses.replace(SHORT, steps=1, batch_size=4)
        loop = NABConfig(isolate=recipe, gamma=gamma).build(info).begin(
            KEY, brightness_model(), data
        )  # fmt: skip
        _, metrics = jax.jit(loop.step)(loop.state, loop.data)
        assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-5)


def test_the_stamp_suppresses_the_backdoor_of_poison_that_was_not_isolated(plenty, monkeypatch):
    """Half of the poison and some clean images are isolated; the rest keeps the attacker's label.

    The stamp is larger than the authors', so that it is visible to a net of strided convolutions.
    """
    poisoned, said = np.flatnonzero(plenty.poisoned), []
    rows = np.sort(np.concatenate([poisoned[:30], np.flatnonzero(~plenty.poisoned)[-10:]]))
    judged = SimpleNamespace(scores={}, suspects=rows)
    monkeypatch.setattr(nab, "judge", lambda *args: judged)
    config = dataclasses.replace(NAB, side=5, isolate=dataclasses.replace(SHORT, steps=1))
    defense, model = config.build(plenty.dataset.info), plenty.model
    found = testing.check_training_defense(defense, plenty, acc=0.9, asr=0.2)
    plain = plenty.evaluate(model, found.variables)
    assert plain.acc > 0.9 and plain.asr > 0.6, (plain.acc, plain.asr)
    labelled, true = found.found["labelled"], np.asarray(plenty.dataset.train.labels)
    assert np.flatnonzero(found.found["suspects"]).tolist() == rows.tolist()
    assert not set(np.flatnonzero(~labelled)) - set(rows)
    changed = plenty.poisoned & (true != 0)  # class 0 is the attacker's
    assert changed[~labelled].mean() > 0.8 and (~labelled)[poisoned[:30]].sum() > 15
    triggered = triggered_split(plenty.attack, plenty.trigger, plenty.dataset.test)
    network = defense.network(model)
    assert np.mean(rejected(model, network, found.variables, triggered.images)) > 0.5
    assert np.mean(rejected(model, network, found.variables, plenty.dataset.test.images)) < 0.1
    brief = dataclasses.replace(config, train=dataclasses.replace(SHORT, steps=1))
    brief.build(plenty.dataset.info).train(
        jax.random.key(1), model, plenty.samples, plenty.variables, Hooks(say=said.append),
        reserved=plenty.reserved,
    )  # fmt: skip
    marked = f"train: {(~labelled).sum()} of 40 suspects have another pseudo-label"
    assert any(marked in one for one in said), said


def test_pseudo_labels_do_not_depend_on_the_given_labels(fixture, monkeypatch):
    """The suspects and the reserved images stay the same, and all given labels change."""
    info, model, samples = fixture.dataset.info, fixture.model, fixture.samples
    brief = dataclasses.replace(SHORT, steps=1)
    pseudo = dataclasses.replace(NAB.pseudo, steps=40)
    defense = dataclasses.replace(NAB, pseudo=pseudo, train=brief).build(info)
    key, seen, true, rows = jax.random.key(1), [], nab.relabelled, np.arange(40)
    monkeypatch.setattr(nab, "relabelled", lambda *args: seen.append(args) or true(*args))
    monkeypatch.setattr(nab, "judge", lambda *args: SimpleNamespace(scores={}, suspects=rows))
    for labels in (samples.labels, (np.asarray(samples.labels) + 1) % 4):
        data = Split(samples.images, labels)
        defense.train(key, model, data, fixture.variables, reserved=fixture.reserved)
    np.testing.assert_array_equal(seen[0][2], seen[1][2])
    assert (seen[0][0] != seen[1][0]).all()


@pytest.mark.parametrize(
    ("settings", "sizes", "words"),
    [
        ({}, (50, 100), "isolate.batch_size: 64 is more than the 50 images"),
        ({}, (400, 60), "pseudo.batch_size: 64 is more than the 60 reserved images"),
        (
            {"train": TrainConfig(batch_size=500)},
            (400, 100),
            "train.batch_size: 500 is more than the 400 images",
        ),
        ({"ratio": 0.001}, (400, 100), "ratio: 0.001 of the 400 images is less than one"),
    ],
)
def test_too_few_images_are_refused(settings, sizes, words, fixture):
    defense = NABConfig(**settings).build(fixture.dataset.info)
    testing.check_refuses(defense.check, fixture.model, None, *sizes, words=words)


def test_a_stamp_that_covers_the_image_is_refused():
    with pytest.raises(ConfigError, match="side: 16 pixels cover the images of some"):
        NABConfig(side=16).build(INFO)
