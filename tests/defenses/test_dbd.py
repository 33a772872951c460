"""Tests of DBD: presets, losses and splits against NumPy, exact resume, and a removed backdoor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import Batch, Split
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.defenses.training_time import dbd
from d3jax.defenses.training_time.dbd import (
    Chosen,
    DBDConfig,
    choose,
    finetuning_loop,
    head_loop,
    head_loss,
    lowest,
)
from d3jax.training import Hooks, fit
from d3jax.training.renewed import fit_renewed
from d3jax.training.semi_supervised import SemiConfig
from d3jax.training.simclr import PROJECTOR, SimCLRConfig, with_projector

from ..helpers.small import small_model

KEY = jax.random.key(3)
CONSTANT = OptimConfig(name="adam", lr=2e-3, weight_decay=0.0, schedule="constant")
SMALL = DBDConfig(
    simclr=SimCLRConfig(
        steps=150, batch_size=50, dimension=32, blur=0.0,
        optimizer=OptimConfig(lr=0.1, weight_decay=1e-4, schedule="cosine"),
    ),
    head=TrainConfig(steps=60, batch_size=50, optimizer=CONSTANT),
    semi=SemiConfig(steps=120, batch_size=20, optimizer=CONSTANT),
    split_every=40,
)  # fmt: skip


def test_presets_have_the_published_settings():
    authors, bench, short = (DBDConfig(preset=name) for name in dbd.PRESETS)
    assert DBDConfig() == authors and authors.simclr == SimCLRConfig()
    adam = OptimConfig(name="adam", lr=0.002, weight_decay=0.0, schedule="constant")
    assert authors.head == TrainConfig(epochs=10, batch_size=128, optimizer=adam)
    semi = authors.semi
    assert (semi.method, semi.steps, semi.batch_size) == ("mixmatch", 190 * 1024, 64)
    assert (semi.temperature, semi.alpha, semi.weight, semi.ramp) == (0.5, 0.75, 15, 1)
    assert semi.optimizer == adam and semi.statistics == "trained"
    assert (authors.kept, authors.split_every) == (0.5, 1024)
    assert (bench.simclr.epochs, bench.simclr.temperature, bench.head) == (100, 0.5, authors.head)
    assert (bench.semi.steps, bench.semi.weight) == (100 * 1024, 8.7)
    # `short` keeps batches and rates, and cuts both long stages alike.
    assert short.simclr == dataclasses.replace(authors.simclr, epochs=12)
    assert 1000 / 12 == pytest.approx(semi.steps / short.semi.steps, rel=0.05)
    changed = {"steps": semi.steps, "optimizer": adam}
    assert dataclasses.replace(short.semi, **changed) == semi
    assert short.semi.steps % short.split_every == 0


def test_defences_with_the_same_simclr_share_the_first_stage(fixture):
    info, model = fixture.dataset.info, fixture.model
    one = SMALL.build(info)
    other = dataclasses.replace(SMALL, kept=0.3, split_every=0).build(info)
    warm = dataclasses.replace(SMALL, simclr=dataclasses.replace(SMALL.simclr, temperature=1.0))
    assert one.settings == other.settings != warm.build(info).settings
    assert one.settings["simclr"]["optimizer"]["lr"] == 0.1  # plain data
    assert one.first_network(model) is with_projector(model, 32) and one.network(model) is model
    assert one.epoch(400) == 8 and one.needs == () and one.rule == ""
    loops = [built.begin(KEY, model, fixture.samples) for built in (one, other)]
    like = jax.eval_shape(one.first_network(model).init, KEY)
    for loop in loops:
        variables = loop.state.variables
        jax.tree.map(np.testing.assert_array_equal, variables, loops[0].state.variables)
        assert jax.tree.structure(variables) == jax.tree.structure(like)


def sce_in_numpy(logits, labels):
    """Return 0.1 · CE + RCE [B] as DBD writes it, with log 0 = log 1e-4."""
    p = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
    p /= p.sum(1, keepdims=True)
    q = np.eye(p.shape[1])[labels]
    cross = -(q * np.log(p)).sum(1)
    reverse = -(p * np.log(np.maximum(q, 1e-4))).sum(1)
    return 0.1 * cross + reverse


def test_the_classifier_minimises_the_symmetric_cross_entropy_alone(fixture):
    model, (params, stats) = fixture.model, fixture.variables
    images, labels = as_float(fixture.samples.images[:20]), fixture.samples.labels[:20]
    batch = Batch(images, labels, np.zeros(20, bool))
    loss = head_loss(model)
    (value, (new, _)), gradient = jax.value_and_grad(loss, has_aux=True)(
        params, stats, batch, KEY, None
    )
    outputs = model.apply(fixture.variables, images, train=True)
    wanted = sce_in_numpy(np.asarray(outputs.logits), labels).mean()
    assert float(value) == pytest.approx(wanted, rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, new, outputs.batch_stats)
    assert np.abs(gradient.pop("head")["kernel"]).max() > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_only_a_new_classifier_and_the_statistics_change_in_stage_2(fixture):
    config = dataclasses.replace(
        SMALL.head, steps=5, optimizer=OptimConfig(lr=0.1, weight_decay=0.1, schedule="constant")
    )
    given = fixture.model, fixture.variables, fixture.samples, config, fixture.dataset.info
    loop = head_loop(KEY, *given)
    begun, before = loop.state.variables, fixture.variables
    for part in ("kernel", "bias"):
        drawn = np.asarray(begun.params["head"][part])
        assert np.abs(drawn).max() <= 144**-0.5 and drawn.std() > 0.02
        assert not np.array_equal(drawn, before.params["head"][part])
    after = fit(loop)[0].variables
    moved = np.abs(after.params["head"]["kernel"] - begun.params["head"]["kernel"])
    assert moved.max() > 1e-3
    for name in set(before.params) - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, after.params[name], before.params[name])
    mean = [one.batch_stats["BatchNorm_0"]["mean"] for one in (after, before)]
    assert not np.allclose(*mean)


def test_the_half_with_the_lowest_scores_keeps_its_labels():
    scores = np.array([3.0, 1, 2, 2, np.inf, 0, 2], np.float32)
    ties = np.array([0.0, 0, 3, 1, 0, 0, 2], np.float32)
    split = lowest(scores, ties, 0.6)  # ⌊4.2⌋ rows
    assert split.labelled.tolist() == [1, 3, 5, 6] and split.unlabelled.tolist() == [0, 2, 4]
    assert split.labelled.dtype == jnp.int32


def test_splits_are_by_the_symmetric_cross_entropy_of_images_as_they_are(fixture):
    split = choose(fixture.model, fixture.variables, fixture.samples, 0.25)
    images = as_float(jnp.asarray(fixture.samples.images))
    logits = np.asarray(fixture.model.apply(fixture.variables, images, train=False).logits)
    wanted = sce_in_numpy(logits, fixture.samples.labels)
    np.testing.assert_allclose(split.scores, wanted, atol=2e-3)
    assert len(split.labelled) == 100 and len(split.unlabelled) == 300
    assert wanted[split.labelled].max() <= wanted[split.unlabelled].min() + 4e-3
    assert sorted([*split.labelled.tolist(), *split.unlabelled.tolist()]) == list(range(400))


FIRST = np.arange(400) < 200
SECOND = np.arange(400) % 2 == 0


def split_by(mask):
    """Return the split in which the rows of a mask keep their labels."""
    zeros = np.zeros(400, np.float32)
    return lowest(np.where(mask, zeros, 1).astype(np.float32), zeros, 0.5)


def finetuned(fixture, labels, every, hooks=None, model=None, steps=8):
    """Run stage 3 with the splits FIRST and SECOND in turn; return state, records and splits."""
    config = dataclasses.replace(SMALL, semi=dataclasses.replace(SMALL.semi, steps=steps))
    data = Split(fixture.samples.images, labels.astype(np.int32))
    given = model or fixture.model, fixture.variables, data, config, fixture.dataset.info
    made = []

    def divide(period, variables):
        made.append(variables)
        return split_by(SECOND if len(made) % 2 == 0 else FIRST)

    state, lines = fit_renewed(finetuning_loop(KEY, *given), divide, every, hooks or Hooks())
    return state, lines, made


def equal(one, other):
    """Return whether two states, or a state and the fixture, have equal variables."""
    return same(one.variables, other.variables)


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(*pair) for pair in leaves)


def test_labels_are_only_read_of_the_rows_that_keep_them(fixture):
    labels = np.asarray(fixture.samples.labels)
    hidden = np.where(FIRST | SECOND, labels, -7)  # −7: a label that must not be read
    other = np.where(FIRST, labels, (labels + 1) % 4)
    split_twice, _, made = finetuned(fixture, labels, every=4)
    assert len(made) == 2 and int(split_twice.step) == 8
    assert isinstance(split_twice.carry, Chosen)
    np.testing.assert_array_equal(split_twice.carry.labelled, np.flatnonzero(SECOND))
    assert equal(split_twice, finetuned(fixture, hidden, every=4)[0])
    assert not equal(split_twice, finetuned(fixture, other, every=4)[0])
    split_once, _, made = finetuned(fixture, labels, every=0)
    assert len(made) == 1 and equal(split_once, finetuned(fixture, other, every=0)[0])
    assert not equal(split_once, split_twice)


def test_a_split_that_stays_the_same_changes_nothing(fixture, monkeypatch):
    """The batches, λ_u and the optimiser continue over the splits, and so do the records."""
    labels = np.asarray(fixture.samples.labels)
    monkeypatch.setattr("tests.defenses.test_dbd.SECOND", FIRST)
    once, lines, _ = finetuned(fixture, labels, every=0, hooks=Hooks(log_every=3))
    thrice, more, made = finetuned(fixture, labels, every=3, hooks=Hooks(log_every=3))
    assert len(made) == 3 and equal(once, thrice)
    assert [line["step"] for line in more] == [line["step"] for line in lines] == [3, 6, 8]
    assert [line["loss"] for line in more] == [line["loss"] for line in lines]
    seconds = [line["seconds"] for line in more]
    assert seconds == sorted(seconds)


def test_all_splits_share_one_compiled_step(fixture):
    traced = []

    def apply(*given, **options):
        traced.append(1)
        return fixture.model.apply(*given, **options)

    counted, labels = fixture.model._replace(apply=apply), np.asarray(fixture.samples.labels)
    finetuned(fixture, labels, every=0, model=counted)
    once = len(traced)
    _, _, made = finetuned(fixture, labels, every=2, model=counted)
    assert len(made) == 4 and len(traced) == 2 * once


class Stopped(Exception):
    """The end of a run in the middle, as by a signal."""


def saving(store, last=None):
    """Return hooks that keep checkpoints in `store`, and stop after the step `last`."""

    def save(state, records):
        store[int(state.step)] = jax.tree.map(jnp.copy, state), list(records)

    def log(record, steps):
        assert steps == 8
        if record["step"] == last:
            raise Stopped

    def restore(like, step):
        return store[step]

    return Hooks(
        save=save, saved=lambda: sorted(store), restore=restore, log=log, log_every=1,
        save_every=2, save_last=True,
    )  # fmt: skip


@pytest.mark.parametrize("last", [5, 7])
def test_resume_is_bit_exact_within_a_split_and_at_its_end(fixture, last):
    labels, store = np.asarray(fixture.samples.labels), {}
    whole, lines, _ = finetuned(fixture, labels, every=4, hooks=Hooks(log_every=1))
    splits = []

    def run(hooks):
        config = dataclasses.replace(SMALL, semi=dataclasses.replace(SMALL.semi, steps=8))
        given = fixture.model, fixture.variables, fixture.samples, config, fixture.dataset.info

        def divide(period, variables):
            splits.append(variables)
            return split_by(FIRST if same(variables, fixture.variables) else SECOND)

        return fit_renewed(finetuning_loop(KEY, *given), divide, 4, hooks)

    with pytest.raises(Stopped):
        run(saving(store, last))
    assert max(store, default=0) == last // 2 * 2
    before = len(splits)
    state, more = run(saving(store))
    # A checkpoint within a split has it. At the end of a split, a new one is made.
    assert len(splits) - before == {5: 1, 7: 0}[last]
    assert equal(state, whole)
    np.testing.assert_array_equal(state.carry.labelled, whole.carry.labelled)
    assert [line["step"] for line in more] == [line["step"] for line in lines] == list(range(1, 9))
    assert [line["loss"] for line in more] == [line["loss"] for line in lines]


def test_dbd_learns_the_task_without_the_backdoor(fixture):
    assert fixture.before.asr > 0.9
    defense = SMALL.build(fixture.dataset.info)
    result = testing.check_training_defense(defense, fixture, asr=0.2, acc=0.9)
    found, labelled = result.found, result.found["labelled"]
    assert labelled.sum() == 200 and (found["suspects"] == ~labelled).all()
    # Poisoned images of the target class have their true label.
    wrong = np.asarray(fixture.samples.labels) != np.asarray(fixture.dataset.train.labels)
    assert wrong.mean() > 0.06 and wrong[labelled].mean() < 0.01
    scores = found["rescored"]
    assert scores[labelled].min() >= scores[~labelled].max()  # a low score is suspicious
    assert scores[wrong].mean() < scores[~wrong].mean() - 1
    assert not found["entropy"].any()  # there are no scores after the first stage


def test_training_begins_with_the_features_of_the_first_stage(fixture):
    slow = dataclasses.replace(CONSTANT, lr=1e-9)
    config = dataclasses.replace(
        SMALL,
        head=dataclasses.replace(SMALL.head, steps=2),
        semi=dataclasses.replace(SMALL.semi, steps=2, optimizer=slow),
    )
    defense, model = config.build(fixture.dataset.info), fixture.model
    begun = with_projector(model, 32).init(jax.random.key(8))
    found = defense.train(KEY, model, fixture.samples, begun)
    assert PROJECTOR not in found.variables.params and PROJECTOR in begun.params
    for name in ("conv0", "conv1"):
        kernels = (one.params[name]["kernel"] for one in (found.variables, begun))
        np.testing.assert_allclose(*kernels, rtol=0, atol=1e-6)
    assert found.trace["step"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        ({}, 49, "simclr.batch_size: 50 is more than the 49 images"),
        ({"head": {"batch_size": 90}}, 80, "head.batch_size: 90 is more than the 80 images"),
        ({"kept": 0.1}, 100, "semi.batch_size: 20 is more than the 10 images that keep"),
        ({"kept": 1.0}, 100, "semi.batch_size: 20 is more than the 0 images that lose"),
    ],
)
def test_sets_that_are_too_small_are_refused(fixture, change, size, words):
    head = dataclasses.replace(SMALL.head, **change.pop("head", {}))
    defense = dataclasses.replace(SMALL, head=head, **change).build(fixture.dataset.info)
    shapes = jax.eval_shape(fixture.model.init, KEY)
    testing.check_refuses(defense.check, fixture.model, shapes, size, 0, words=words)


def test_models_without_a_classifier_or_its_features_are_refused(fixture):
    defense, model = SMALL.build(fixture.dataset.info), fixture.model
    shapes = jax.eval_shape(model.init, KEY)
    defense.check(model, shapes, 400, 0)
    other = shapes._replace(params={"fc": shapes.params["head"]})
    words = "dbd: 'head/kernel' matches none of the 2 parameters"
    testing.check_refuses(defense.check, model, other, 400, 0, words=words)
    unnamed = model._replace(activations=None)
    testing.check_refuses(defense.check, unnamed, shapes, 400, 0, words="name no 'penultimate'")
    with pytest.raises(ConfigError, match="kept: 0"):
        DBDConfig(kept=0)


def test_a_set_of_one_channel_that_allows_no_flip_has_a_first_stage(fixture):
    """The images have an odd size."""
    grey = make_synthetic(SyntheticConfig(size=9, channels=1, classes=3, train=60, test=9))
    simclr = dataclasses.replace(SMALL.simclr, steps=2, batch_size=20, blur=0.5)
    defense = dataclasses.replace(SMALL, simclr=simclr).build(grey.info)
    begun = fit(defense.begin(KEY, small_model(grey.info), grey.train))[0].variables
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(begun))
