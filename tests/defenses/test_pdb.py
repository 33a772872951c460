"""Tests of PDB: its network, its batches and distortions, and the effect on a backdoor."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.attacks import badnets
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.random import stream
from d3jax.core.types import DataInfo, Split
from d3jax.data import synthetic
from d3jax.defenses.training_time.pdb import (
    PDBConfig,
    defensive_batches,
    distorted,
    pdb_loop,
    plan_of,
    stamp_of,
)
from d3jax.defenses.training_time.stamped import Stamp, put_on, stamped
from d3jax.training.loop import fit
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.step import TrainData

from ..helpers.small import small_model

KEY = jax.random.key(5)
INFO = DataInfo("some", (16, 16, 3), ("a", "b", "c"), (0.4,) * 3, (0.2,) * 3, 2, True)
STILL = DataInfo("still", (9, 10, 1), tuple("abcd"), (0.4,), (0.2,))
RECIPE = TrainConfig(
    steps=300, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05, schedule="constant")
)
PDB = PDBConfig(train=RECIPE)
PLAIN = PDBConfig(dimmed=0.0, rotated=0.0)


def test_presets_have_the_authors_numbers():
    config, short = PDBConfig(), PDBConfig(preset="short")
    assert (config.side, config.value, config.shift, config.repeats) == (7, 2.0, 1, 5)
    assert (config.dimmed, config.rotated, config.degrees) == (0.2, 0.5, 10.0)
    recipe = config.train
    assert (recipe.epochs, recipe.batch_size, recipe.augment) == (100, 256, "auto")
    assert recipe.optimizer == OptimConfig(lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert short == dataclasses.replace(
        config, preset="short", train=dataclasses.replace(config.train, epochs=14)
    )
    assert plan_of(config, 50_000, 5_000) == (292, 256)  # 29,200 steps in 100 epochs


@pytest.mark.parametrize("train", [False, True])
def test_the_network_patches_every_image_and_rolls_the_logits(train, fixture):
    model, stamp = fixture.model, Stamp(7, (2.0,) * 3, 1)
    network = stamped(model, stamp)
    assert stamped(model, stamp) is network and network.channels == model.channels
    assert network.activations() == model.activations()
    images = as_float(jnp.asarray(fixture.dataset.test.images[:6]))
    by_hand = np.array(images)
    by_hand[:, :7, :7] = 2.0
    found = network.apply(fixture.variables, images, train=train)
    inner = model.apply(fixture.variables, jnp.asarray(by_hand), train=train)
    for i in range(4):
        np.testing.assert_allclose(found.logits[:, i], inner.logits[:, (i + 1) % 4], rtol=1e-6)
    for wanted, got in (
        (inner.features, found.features),
        (inner.batch_stats, found.batch_stats),
    ):
        jax.tree.map(np.testing.assert_array_equal, wanted, got)


def test_an_edit_of_the_network_is_that_of_the_model(fixture):
    network, model = stamped(fixture.model, Stamp(3, (0.5,) * 3, 2)), fixture.model
    images = as_float(jnp.asarray(fixture.dataset.test.images[:4]))
    edit = {"out0": lambda x: 0.5 * x}
    found = network.apply(fixture.variables, images, train=False, edit=edit)
    patched = put_on(Stamp(3, (0.5,) * 3), images)
    wanted = model.apply(fixture.variables, patched, train=False, edit=edit)
    np.testing.assert_array_equal(found.features["out0"], wanted.features["out0"])
    np.testing.assert_array_equal(found.logits, np.roll(wanted.logits, -2, axis=1))
    with pytest.raises(ValueError, match="'nowhere' is no activation"):
        network.apply(fixture.variables, images, train=False, edit={"nowhere": lambda x: x})


def test_an_epoch_has_every_image_once_and_every_clean_one_as_often_as_it_repeats(rng):
    images = rng.integers(0, 256, (10, 9, 10, 1)).astype(np.uint8)
    labels = rng.integers(0, 4, 10).astype(np.int32)
    config = dataclasses.replace(PLAIN, repeats=3, side=4)  # 7 + 3 · 3 = 16 rows
    data = TrainData(Split(images, labels), np.zeros(10, bool), {})
    batches = jax.jit(defensive_batches(config, STILL, 7, 3, 4, 4))
    drawn = [batches(KEY, jnp.int32(step), data) for step in range(4)]
    rows = np.concatenate([one.rows for one in drawn])
    assert np.bincount(rows, minlength=10).tolist() == [1] * 7 + [3] * 3
    found = np.concatenate([one.images for one in drawn])
    wanted = images[rows] / np.float32(255)
    wanted[rows >= 7, :4, :4] = 2.0
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    shifted = np.where(rows >= 7, (labels[rows] + 1) % 4, labels[rows])
    np.testing.assert_array_equal(np.concatenate([one.labels for one in drawn]), shifted)
    other = np.concatenate([batches(KEY, jnp.int32(step), data).rows for step in range(4, 8)])
    assert np.bincount(other, minlength=10).tolist() == [1] * 7 + [3] * 3
    assert other.tolist() != rows.tolist()


def test_only_clean_images_are_distorted(rng):
    images = rng.integers(0, 256, (10, 9, 10, 1)).astype(np.uint8)
    config = PDBConfig(dimmed=1.0, rotated=1.0, side=4)
    data = TrainData(Split(images, np.zeros(10, np.int32)), np.zeros(10, bool), {})
    batches = jax.jit(defensive_batches(config, STILL, 5, 5, 1, 30))  # an epoch is one batch
    batch = batches(KEY, jnp.int32(0), data)
    own = np.asarray(batch.rows) >= 5
    assert own.sum() == 25
    same = np.isclose(batch.images, images[batch.rows] / np.float32(255)).all((1, 2, 3))
    np.testing.assert_array_equal(same, ~own)


def test_dimmed_images_have_one_factor_each(rng):
    images = jnp.asarray(rng.uniform(0.5, 1.5, (2000, 3, 3, 1)).astype(np.float32))
    config = PDBConfig(rotated=0.0)
    found = jax.jit(functools.partial(distorted, config))(KEY, images)
    factors = np.asarray(found / images).reshape(2000, -1)
    np.testing.assert_allclose(factors.min(1), factors.max(1), rtol=1e-4)
    changed = factors[:, 0][factors[:, 0] < 0.9999]
    assert abs(len(changed) / 2000 - 0.2) < 0.03
    assert changed.min() >= 0.5 and abs(changed.mean() - 0.75) < 0.03


def test_rotated_images_have_angles_within_the_limit():
    """A pixel on the right of the centre tells the angle by its centre of mass."""
    point = np.zeros((600, 41, 41, 1), np.float32)
    point[:, 19:22, 37:40] = 1  # 18 pixels from the centre (20, 20)
    config = PDBConfig(dimmed=0.0, degrees=10.0)
    found = np.asarray(jax.jit(functools.partial(distorted, config))(KEY, point))[..., 0]
    y, x = np.mgrid[:41, :41] - 20
    total = found.sum((1, 2))
    down, right = ((found * axis).sum((1, 2)) / total for axis in (y, x))
    angles = np.degrees(np.arctan2(down, right))
    turned = ~np.isclose(angles, 0, atol=1e-3)
    assert abs(turned.mean() - 0.5) < 0.07
    assert 9 < np.abs(angles).max() < 10.5 and angles.min() < -9 and angles.max() > 9
    np.testing.assert_array_equal(found[~turned], point[~turned][..., 0])


def test_the_first_stage_makes_no_step(fixture):
    defense, key = PDB.build(fixture.dataset.info), jax.random.key(1)
    state, records = fit(defense.begin(key, fixture.model, fixture.samples))
    assert int(state.step) == 0 and records == []
    new = fixture.model.init(stream(key, "init"))
    jax.tree.map(np.testing.assert_array_equal, state.variables, new)


def test_the_loop_trains_on_both_sets(fixture):
    samples, reserved, info = fixture.samples, fixture.reserved, fixture.dataset.info
    loop = pdb_loop(KEY, fixture.model, fixture.variables, samples, reserved, PDB, info)
    images, labels, marked = loop.data.resident()
    np.testing.assert_array_equal(images[400:], reserved.images)
    np.testing.assert_array_equal(labels[:400], samples.labels)
    assert loop.steps == 300 and not marked.any()
    whole = dataclasses.replace(PDB, train=dataclasses.replace(RECIPE, steps=0, epochs=2))
    loop = pdb_loop(KEY, fixture.model, fixture.variables, samples, reserved, whole, info)
    assert loop.steps == 2 * ((400 + 5 * 100) // 64)


@pytest.fixture(scope="module")
def few():
    """Return a `Fixture` with half the poison of the shared one; its model is untrained.

    At 10 % poison, the attacker's trigger mostly decides in this small net, also with the patch.
    """
    settings = {"size": 12, "channels": 3, "classes": 4, "train": 400, "test": 130, "noise": 0.15}
    dataset = synthetic(**settings).build()
    model, attack = small_model(dataset.info), badnets(rate=0.05).build(dataset.info)
    samples, flags = poisoned_split(KEY, attack, dataset.train)
    rows = np.flatnonzero(~flags)[:100]
    reserved = Split(*(np.asarray(part)[rows] for part in dataset.train))
    trigger, variables = attack.init(KEY), model.init(KEY)
    return testing.Fixture(model, dataset, attack, variables, trigger, samples, flags, reserved)


def test_the_patch_lets_triggered_images_be_classified_as_their_own_class(few):
    """The shift turns the target 0 into class 3, so neither the ASR nor class 3 proves anything."""
    defense = PDB.build(few.dataset.info)
    found = testing.check_training_defense(defense, few, acc=0.9, asr=0.1)
    assert not found.found["suspects"].any() and found.found["labelled"].all()
    shares = {}
    for network in (few.model, defense.network(few.model)):
        counts = few.evaluate(network, found.variables)
        shares[network] = counts.recovered[1:3].sum() / counts.triggered[1:3].sum()
    plain, patched = shares.values()
    assert patched > plain + 0.2, (plain, patched)


def test_too_few_images_are_refused(fixture):
    defense = PDBConfig().build(fixture.dataset.info)
    words = "train.batch_size: 256 is more than the 250 images and repeated reserved images"
    testing.check_refuses(defense.check, fixture.model, None, 200, 10, words=words)
    words = "reserved: PDB needs at least one reserved image"
    testing.check_refuses(defense.check, fixture.model, None, 400, 0, words=words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 9}, "side: 9 pixels cover the images of still, which are 9×10"),
        ({"shift": 4}, "shift: 4 moves none of the 4 classes of still"),
        ({"shift": 8}, "shift: 8 moves none"),
    ],
)
def test_a_patch_or_shift_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PDBConfig(**settings).build(STILL)


def test_the_stamp_has_a_value_for_every_channel():
    assert stamp_of(PDBConfig(), STILL) == Stamp(7, (2.0,), 1)
    assert stamp_of(PDBConfig(shift=2, value=0.5), INFO) == Stamp(7, (0.5, 0.5, 0.5), 2)
