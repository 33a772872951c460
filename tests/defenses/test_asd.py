"""Tests of ASD: seeds, rules of the splits, virtual copies, epochs, and the whole defence."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax import testing
from d3jax.config.loading import build
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import Split, Variables
from d3jax.defenses.training_time.asd import AUTHORS, ASDConfig, make_divide, mixmatch_loop
from d3jax.defenses.training_time.splitting import (
    lowest_of_all,
    lowest_of_each_class,
    pools_of,
    with_seeds,
)
from d3jax.defenses.training_time.virtual_copy import earlier_layers, layers_of, make_copy
from d3jax.models import PreActResNet18Config, ResNetConfig, WideResNetConfig
from d3jax.training.loop import Hooks, fit
from d3jax.training.renewed import fit_renewed

from ..helpers.small import small_model

KEY = jax.random.key(5)
ADAM = OptimConfig(name="adam", lr=0.015, weight_decay=0.0, schedule="constant")
TINY = ASDConfig(
    class_aware=1, class_agnostic=1, meta=1, every=1, growth=5,
    semi=dataclasses.replace(AUTHORS, steps=4, batch_size=12),
    virtual=TrainConfig(steps=2, batch_size=50, optimizer=ADAM),
)  # fmt: skip


def test_presets_have_the_published_settings_and_their_proportions():
    authors, short = ASDConfig(), ASDConfig(preset="short")
    assert (authors.seeds, authors.growth, authors.every, authors.kept) == (10, 10, 5, 0.5)
    assert (authors.class_aware, authors.class_agnostic, authors.meta) == (60, 30, 30)
    semi, virtual = authors.semi, authors.virtual
    assert (semi.steps, semi.batch_size, semi.temperature, semi.alpha) == (1024, 64, 0.5, 0.75)
    assert (semi.weight, semi.ramp, semi.statistics) == (15.0, 1.0, "trained")
    assert semi.optimizer == dataclasses.replace(ADAM, lr=0.002)
    assert (virtual.epochs, virtual.batch_size, virtual.optimizer) == (1, 128, ADAM)
    assert (short.class_aware, short.class_agnostic, short.meta) == (6, 3, 3)
    assert short.semi == dataclasses.replace(semi, steps=512) and short.virtual == virtual
    assert short.epochs * short.semi.steps * 20 == authors.epochs * semi.steps
    ends = [
        one.seeds + one.growth * ((one.class_aware - 1) // one.every) for one in (authors, short)
    ]
    assert ends == [120, 110]


def test_seeds_are_reserved_images_with_their_labels(fixture):
    data, reserved = fixture.samples, fixture.reserved
    split, seeds = with_seeds(KEY, data, reserved, 3, 4)
    assert len(split.labels) == 412 and seeds.tolist() == [False] * 400 + [True] * 12
    assert np.bincount(split.labels[seeds]).tolist() == [3, 3, 3, 3]
    np.testing.assert_array_equal(split.images[:400], data.images)
    np.testing.assert_array_equal(split.labels[:400], data.labels)
    known = {(image.tobytes(), label) for image, label in zip(*reserved, strict=True)}
    drawn = {(split.images[row].tobytes(), split.labels[row]) for row in range(400, 412)}
    assert len(drawn) == 12 and drawn <= known
    few = Split(reserved.images[:9], np.array([0, 0, 0, 1, 1, 3, 3, 3, 3], np.int32))
    with pytest.raises(ConfigError, match="3 reserved images of every class .* class 1 has 2"):
        with_seeds(KEY, data, few, 3, 4)


def test_class_aware_split_keeps_seeds_and_the_lowest_of_each_class(rng):
    scores, labels, seeds = rng.random(60), rng.integers(0, 4, 60), rng.random(60) < 0.2
    ranked = np.argsort(scores)
    kept = lowest_of_each_class(ranked, labels, seeds, 3)
    for row in range(60):
        before = (labels == labels[row]) & ~seeds & (scores < scores[row])
        assert kept[row] == (seeds[row] or before.sum() < 3)
    np.testing.assert_array_equal(lowest_of_each_class(ranked, labels, seeds, 0), seeds)
    assert lowest_of_each_class(ranked, labels, seeds, 60).all()


def test_class_agnostic_split_keeps_the_lowest_share(rng):
    scores = rng.random(61)
    kept = lowest_of_all(np.argsort(scores), 0.5)
    np.testing.assert_array_equal(kept, (scores[:, None] > scores).sum(1) < 30)
    assert not lowest_of_all(np.arange(3), 0.3).any()


def test_pools_have_one_shape_and_hold_the_rows_of_a_part_equally_often(rng):
    for count in (7, 100, 190):
        kept, scores = rng.permutation(200) < count, rng.random(200)
        pools = pools_of(KEY, kept, scores, 650)
        for rows, part in ((pools.labelled, kept), (pools.unlabelled, ~kept)):
            assert rows.shape == (650,) and rows.dtype == jnp.int32
            counts = np.bincount(rows, minlength=200)
            assert not counts[~part].any() and np.ptp(counts[part]) <= 1
        np.testing.assert_array_equal(pools.kept, kept)
        np.testing.assert_allclose(pools.scores, scores, rtol=1e-6)
    again, other = (pools_of(key, kept, scores, 650) for key in (KEY, jax.random.key(6)))
    jax.tree.map(np.testing.assert_array_equal, pools, again)
    extra = [np.bincount(one.labelled, minlength=200) for one in (pools, other)]
    assert (extra[0] != extra[1]).any()


BLOCKS = [f"block{stage}_{block}" for stage in (1, 2, 3, 4) for block in (1, 2)]


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (PreActResNet18Config(width=2).build, ["stem", *BLOCKS, "head"]),
        (ResNetConfig(width=2).build, ["stem", "norm", *BLOCKS, "head"]),
        (
            WideResNetConfig(depth=10).build,
            ["stem", "block1_1", "block2_1", "block3_1", "norm", "head"],
        ),
        (small_model, ["conv0", "BatchNorm_0", "conv1", "BatchNorm_1", "head"]),
    ],
)
def test_virtual_copy_trains_the_later_half_of_the_layers(make, layers, dataset):
    info = dataset.info
    model = make(info)
    shapes = jax.eval_shape(model.init, KEY)
    assert layers_of(model, shapes, info) == layers
    fixed = earlier_layers(model, shapes, info)
    later = {name for name, part in fixed.items() if not any(jax.tree.leaves(part))}
    assert later == set(layers[-(len(layers) // 2) :])
    assert {name for name, part in fixed.items() if all(jax.tree.leaves(part))} == set(
        layers
    ) - later
    if "block4_2" in layers:  # the authors' layer3, layer4 and linear
        assert later == {*BLOCKS[4:], "head"}


def test_layers_of_a_compiled_network_are_in_its_order(model, dataset):
    run = jax.jit(model.apply, static_argnames="train")
    compiled = model._replace(
        apply=lambda variables, images, *, train: run(variables, images, train=train)
    )
    shapes = jax.eval_shape(model.init, KEY)
    assert layers_of(compiled, shapes, dataset.info) == layers_of(model, shapes, dataset.info)


def test_first_step_of_a_virtual_copy_is_adams(fixture):
    """Adam's first step is −lr · g / (|g| + ε), with the gradient of the mean cross-entropy."""
    model, split, images = fixture.model, fixture.samples, as_float(fixture.samples.images)
    config = TrainConfig(steps=1, batch_size=400, augment="none", optimizer=ADAM)
    variables = model.init(KEY)
    copy = make_copy(KEY, model, variables, split, config, fixture.dataset.info, Hooks())
    found = copy(7, variables)

    def loss(params):
        logits = model.apply(variables._replace(params=params), images, train=True).logits
        return -jax.nn.log_softmax(logits)[jnp.arange(400), split.labels].mean()

    slopes = jax.grad(loss)(variables.params)
    for name, before in variables.params.items():
        for part, value in before.items():
            moved = np.asarray(found.params[name][part] - value)
            slope = np.asarray(slopes[name][part], np.float64)
            wanted = -0.015 * slope / (np.abs(slope) + 1e-8)
            if name in ("BatchNorm_1", "head"):
                clear = np.abs(slope) > 1e-5  # rounding may turn the sign of others
                assert clear.any()
                np.testing.assert_allclose(moved[clear], wanted[clear], rtol=1e-2)
            else:
                assert wanted.any() and not moved.any()
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), found.batch_stats, variables.batch_stats
    )
    assert all(jax.tree.leaves(changed))


def test_virtual_copies_of_two_epochs_see_other_batches(fixture):
    model, variables, info = fixture.model, fixture.variables, fixture.dataset.info
    before = jax.tree.map(np.array, variables)
    copy = make_copy(KEY, model, variables, fixture.samples, TINY.virtual, info, Hooks())
    first, again, other = copy(0, variables), copy(0, variables), copy(1, variables)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, first.params, other.params))) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_every_epoch_splits_by_the_rule_of_its_stage(fixture, monkeypatch, rng):
    """The rules are computed here from the scores of the model and of its copy, row by row."""
    own = sys.modules["d3jax.defenses.training_time.asd"]
    size, labels = 700, np.arange(700) % 4
    seeds = np.arange(700) >= 660
    split = Split(np.zeros((size, 12, 12, 3), np.uint8), labels.astype(np.int32))
    scores = {name: rng.random(size).astype(np.float32) for name in ("model", "copy")}
    asked = []

    def scores_of(model, variables, given, names):
        asked.append(variables.params)
        return {"symmetric": scores[variables.params], "entropy": rng.random(size)}

    monkeypatch.setattr(own, "scores_of", scores_of)
    monkeypatch.setattr(
        own, "make_copy", lambda *given: lambda epoch, variables: Variables("copy", {})
    )
    divide = make_divide(
        KEY, fixture.model, fixture.variables, split, seeds, ASDConfig(), fixture.dataset.info,
        Hooks(),
    )  # fmt: skip

    def place(values, rows):
        return np.array([(values[rows] < value).sum() for value in values])

    added = {0: 0, 4: 0, 5: 10, 14: 20, 59: 110}
    reduced = scores["model"] - scores["copy"]
    for epoch in (0, 4, 5, 14, 59, 60, 89, 90, 119):
        asked.clear()
        pools = divide(epoch, Variables("model", {}))
        values = scores["model"] if epoch < 90 else reduced
        if epoch < 60:
            mates = [place(values, (labels == label) & ~seeds) for label in range(4)]
            wanted = seeds | (np.choose(labels, mates) < added[epoch])
        else:
            wanted = place(values, np.ones(size, bool)) < 350
        np.testing.assert_array_equal(pools.kept, wanted)
        np.testing.assert_array_equal(pools.scores, values)
        assert asked == (["model"] if epoch < 90 else ["model", "copy"])
    first, second = (divide(epoch, Variables("model", {})) for epoch in (0, 1))
    assert (first.labelled != second.labelled).any()


def test_entropy_breaks_ties_between_scores(fixture, monkeypatch):
    own = sys.modules["d3jax.defenses.training_time.asd"]
    found = {"symmetric": np.zeros(400, np.float32), "entropy": np.arange(400.0)[::-1]}
    monkeypatch.setattr(own, "scores_of", lambda *given: found)
    config = dataclasses.replace(TINY, class_aware=0, meta=0)
    divide = make_divide(
        KEY, fixture.model, fixture.variables, fixture.samples, np.zeros(400, bool), config,
        fixture.dataset.info, Hooks(),
    )  # fmt: skip
    assert np.flatnonzero(divide(0, fixture.variables).kept).tolist() == list(range(200, 400))


def halves(epoch):
    """Return the `Pools` of a split of 400 images, another one for each epoch."""
    key = jax.random.fold_in(KEY, epoch)
    kept = np.asarray(jax.random.uniform(key, (400,))) < (0.1, 0.5, 0.8)[epoch]
    return pools_of(key, kept, np.zeros(400), 48)


def loop_of(fixture, split=None, config=TINY):
    given = fixture.model, fixture.variables, split or fixture.samples
    return mixmatch_loop(KEY, *given, config, fixture.dataset.info)


def test_labels_of_unlabelled_images_are_never_read(fixture):
    kept = np.asarray(halves(1).kept)
    results = []
    for wrong in (kept & False, ~kept, kept):
        labels = np.where(wrong, (fixture.samples.labels + 1) % 4, fixture.samples.labels)
        loop = loop_of(fixture, fixture.samples._replace(labels=labels.astype(np.int32)))
        state = dataclasses.replace(loop.state, carry=halves(1))
        results.append(fit(loop._replace(state=state, steps=3))[0].variables.params)
    jax.tree.map(np.testing.assert_array_equal, results[0], results[1])
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, results[0], results[2]))) > 0


def test_epochs_share_one_program_and_schedules_span_all_of_them(fixture):
    loop, traced, seen = loop_of(fixture), [], []

    def step(state, data):
        traced.append(data.split.images.shape)
        return loop.step(state, data)

    def divide(epoch, variables):
        seen.append((epoch, variables))
        return halves(epoch)

    hooks = Hooks(log_every=1)
    state, lines = fit_renewed(loop._replace(step=step), divide, 4, hooks)
    assert [epoch for epoch, _ in seen] == [0, 1, 2] and len(traced) == 1
    jax.tree.map(np.testing.assert_array_equal, seen[0][1], fixture.variables)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert (np.diff([line["seconds"] for line in lines]) > 0).all()
    weights = [(line["loss"] - line["clean_loss"]) / line["unlabelled_loss"] for line in lines]
    np.testing.assert_allclose(weights, 15 * np.arange(12) / 12, atol=0.1)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert counts and all(int(count) == 12 for count in counts)  # never initialised again
    jax.tree.map(np.testing.assert_array_equal, state.carry, halves(2))


@pytest.mark.parametrize(("broken", "begins"), [(7, [2]), (5, [1, 2])])
def test_stopped_training_continues_with_the_split_of_its_epoch(broken, begins, fixture):
    """It stops in epoch 1: after a checkpoint within it, or with the one of its beginning."""
    saved = {}

    def save(state, records):
        saved[int(state.step)] = (jax.tree.map(jnp.copy, state), list(records))

    def stopping(record, steps):
        assert steps == 12
        if record["step"] == broken:
            raise KeyboardInterrupt

    def hooks(log=lambda record, steps: None):
        return Hooks(
            save=save, saved=lambda: sorted(saved), restore=lambda like, step: saved[step],
            log=log, log_every=1, save_every=1, save_last=True,
        )  # fmt: skip

    whole, _ = fit_renewed(loop_of(fixture), lambda epoch, variables: halves(epoch), 4, Hooks())
    with pytest.raises(KeyboardInterrupt):
        fit_renewed(loop_of(fixture), lambda epoch, variables: halves(epoch), 4, hooks(stopping))
    assert max(saved) == broken - 1
    again = []

    def divide(epoch, variables):
        again.append(epoch)
        return halves(epoch)

    state, lines = fit_renewed(loop_of(fixture), divide, 4, hooks())
    assert again == begins and [line["step"] for line in lines] == list(range(1, 13))
    jax.tree.map(np.testing.assert_array_equal, whole.variables, state.variables)
    finished, _ = fit_renewed(loop_of(fixture), divide, 4, hooks())
    assert again == begins
    jax.tree.map(np.testing.assert_array_equal, finished.carry, halves(2))


def test_first_stage_makes_no_step(fixture):
    defense = ASDConfig().build(fixture.dataset.info)
    loop = defense.begin(KEY, fixture.model, fixture.samples)
    state, lines = fit(loop)
    assert int(state.step) == 0 and lines == []
    fewer = Split(*(part[:100] for part in fixture.samples))
    other = fit(defense.begin(KEY, fixture.model, fewer))[0]
    jax.tree.map(np.testing.assert_array_equal, state.variables, other.variables)


MODERATE = dataclasses.replace(
    TINY, class_aware=4, class_agnostic=2, meta=2, growth=10,
    semi=dataclasses.replace(AUTHORS, steps=25, batch_size=32),
    virtual=TrainConfig(epochs=1, batch_size=32, optimizer=ADAM),
)  # fmt: skip


def test_asd_learns_the_task_of_a_poisoned_set_without_the_backdoor(fixture):
    defense = MODERATE.build(fixture.dataset.info)
    found = testing.check_training_defense(defense, fixture, asr=0.2, acc=0.9).found
    labelled, poisoned = found["labelled"], fixture.poisoned
    np.testing.assert_array_equal(found["suspects"], ~labelled)
    # Half of 400 images and 40 seeds keep their labels, and up to 40 of them are seeds.
    assert 180 <= labelled.sum() <= 220 and labelled[poisoned].mean() < 0.2
    assert found["split"][labelled].min() >= found["split"][~labelled].max()


def test_random_splits_leave_the_backdoor(fixture, monkeypatch, rng):
    """So it is the rules that keep the backdoor out, and not MixMatch alone."""
    own = sys.modules["d3jax.defenses.training_time.asd"]
    for rule in ("lowest_of_each_class", "lowest_of_all"):
        monkeypatch.setattr(own, rule, lambda ranked, *given: rng.random(len(ranked)) < 0.5)
    defense = MODERATE.build(fixture.dataset.info)
    begun = fit(defense.begin(KEY, fixture.model, fixture.samples))[0].variables
    given = KEY, fixture.model, fixture.samples, begun
    trained = defense.train(*given, reserved=fixture.reserved)
    assert fixture.evaluate(fixture.model, trained.variables).asr > 0.8


def test_half_of_a_clean_set_loses_its_labels_too(fixture):
    defense = TINY.build(fixture.dataset.info)
    given = KEY, fixture.model, fixture.dataset.train, fixture.variables
    said = []
    found = defense.train(*given, Hooks(say=said.append), reserved=fixture.reserved).found
    assert 180 <= found["suspects"].sum() <= 220
    last = f"{found['labelled'].sum()} of 400 images keep their labels in the last epoch"
    assert len(said) == 2 and said[0].startswith("needs") and said[1] == last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"semi": {"method": "fixmatch"}}, "semi.method: 'fixmatch' is not the method of ASD"),
        ({"semi": {"steps": 0}}, "semi.steps: 0, want the number of MixMatch steps in an epoch"),
        ({"class_aware": 0, "class_agnostic": 0, "meta": 0}, "there is no epoch"),
    ],
)
def test_settings_without_a_training_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(ASDConfig, settings)


@pytest.mark.parametrize(
    ("changes", "size", "reserved", "words"),
    [
        ({}, 400, 39, "seeds: 10 images of each of the 4 classes are 40, more than the 39"),
        (
            {"class_aware": 21},
            400,
            100,
            "12 is more than the 0 images without labels after stage 1",
        ),
        ({"kept": 0.02}, 400, 100, "semi.batch_size: 12 is more than the 8 images with labels"),
        ({"kept": 0.99}, 400, 100, "semi.batch_size: 12 is more than the 5 images without labels"),
        ({"virtual": TrainConfig(batch_size=500)}, 400, 100, "virtual.batch_size: 500 is more"),
    ],
)
def test_too_few_images_are_refused(changes, size, reserved, words, fixture):
    check = dataclasses.replace(TINY, **changes).build(fixture.dataset.info).check
    testing.check_refuses(check, fixture.model, None, size, reserved, words=words)


def test_parts_take_what_they_leave_out_from_the_preset():
    config = build(ASDConfig, {"preset": "short", "semi": {"batch_size": 32}}, "")
    assert config.semi == dataclasses.replace(AUTHORS, steps=512, batch_size=32)
    assert config.meta == 3 and config.virtual == ASDConfig().virtual
