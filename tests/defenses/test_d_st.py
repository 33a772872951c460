"""Tests of D-ST: the contrastive loss, what each kind of image is used for, and the classifier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.config.recipes import OptimConfig
from d3jax.core.images import as_float
from d3jax.core.types import Split, Variables
from d3jax.defenses.training_time.consistency import SeparationConfig
from d3jax.defenses.training_time.d_br import DBRConfig
from d3jax.defenses.training_time.d_st import (
    REST,
    SUSPECT,
    TRUSTED,
    ClassifierConfig,
    Drawn,
    DSTConfig,
    Sorted,
    classifier_loop,
    classifier_loss,
    contrastive,
    features_loop,
    make_d_st,
)
from d3jax.training.loop import fit
from d3jax.training.simclr import SimCLRConfig, without_projector

from .test_consistency import recipe

KEY = jax.random.key(6)
LOSS = jax.jit(contrastive, static_argnums=(3, 4))

CONFIG = DSTConfig(
    separation=SeparationConfig(first=recipe(60), intra=recipe(10, 0.01), shift=0.0),
    simclr=SimCLRConfig(
        steps=120, batch_size=100, temperature=0.1, dimension=16, blur=0.0,
        optimizer=OptimConfig(lr=0.1, weight_decay=1e-4, schedule="cosine"),
    ),
    warm_up=2,
    classifier=ClassifierConfig(
        steps=60, batch_size=50, optimizer=OptimConfig(lr=0.05, weight_decay=0.0)
    ),
)  # fmt: skip


def test_the_presets_have_the_published_settings():
    authors, short = DSTConfig(), DSTConfig(preset="short")
    assert authors == DSTConfig(preset="authors") and authors.separation == SeparationConfig()
    own = authors.simclr
    assert (own.epochs, own.batch_size, own.temperature, own.dimension) == (200, 512, 0.1, 128)
    assert own.optimizer == OptimConfig(lr=0.5, weight_decay=1e-4, schedule="cosine_epoch")
    assert own.blur == 0 and authors.warm_up == 10
    head = authors.classifier
    assert (head.epochs, head.batch_size, head.away, head.optimizer.lr) == (10, 512, 0.001, 5)
    assert (head.optimizer.weight_decay, head.optimizer.schedule) == (0, "constant")
    assert (short.simclr.epochs, short.warm_up, short.separation.intra.epochs) == (15, 1, 3)
    assert short.simclr.optimizer == own.optimizer and short.classifier == head


def contrastive_by_hand(vectors, labels, kinds, temperature, negatives):
    """Return the contrastive loss view by view, in NumPy."""
    count, views = len(labels), len(vectors)
    units = [one / np.linalg.norm(one) for one in vectors]
    values = []
    for i in range(views):
        if negatives and kinds[i % count] == SUSPECT:
            continue
        below = sum(np.exp(units[i] @ units[k] / temperature) for k in range(views) if k != i)
        terms = []
        for p in range(views):
            own = p % count == i % count
            both = kinds[i % count] == TRUSTED and kinds[p % count] == TRUSTED
            same = both and labels[i % count] == labels[p % count]
            if p != i and (own or same):
                terms.append(np.log(np.exp(units[i] @ units[p] / temperature) / below))
        values.append(-np.mean(terms))
    return temperature / 0.07 * np.mean(values)


@pytest.mark.parametrize("suspects", ["views", "negatives"])
def test_the_contrastive_loss_equals_the_one_computed_view_by_view(rng, suspects):
    vectors = rng.normal(size=(16, 5))
    labels, kinds = np.array([0, 0, 1, 1, 0, 1, 0, 0]), np.array([1, 1, 1, 1, 0, 0, 2, 2], np.int8)
    found = LOSS(
        jnp.asarray(vectors, jnp.float32), jnp.asarray(labels), jnp.asarray(kinds), 0.3, suspects
    )
    wanted = contrastive_by_hand(vectors, labels, kinds, 0.3, suspects == "negatives")
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_the_contrastive_loss_reads_labels_of_trusted_images_only(rng):
    vectors = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    labels, kinds = jnp.array([0, 1, 0, 0, 1, 1]), jnp.array([1, 1, 1, 0, 2, 0], jnp.int8)
    value = LOSS(vectors, labels, kinds, 0.1)
    assert value == LOSS(vectors, jnp.array([0, 1, 0, 3, 2, 7]), kinds, 0.1)
    assert value != LOSS(vectors, jnp.array([0, 1, 1, 0, 1, 1]), kinds, 0.1)
    # Two images without labels: NT-Xent, times τ / 0.07.
    four = jnp.eye(4)
    found = LOSS(four, jnp.array([0, 0]), jnp.array([0, 2], jnp.int8), 0.14)
    assert float(found) == pytest.approx(2 * np.log(3), rel=1e-5)
    # All negatives: nothing is left to attract.
    found = LOSS(four, jnp.array([0, 0]), jnp.array([2, 2], jnp.int8), 0.14, "negatives")
    assert float(found) == 0


def sorted_set(fixture, count=100):
    """Return the first images of a fixture with kinds in turn."""
    kinds = np.array([REST, TRUSTED, SUSPECT, TRUSTED, REST] * (count // 5), np.int8)
    return Sorted(Split(*(np.asarray(part)[:count] for part in fixture.samples)), kinds)


def test_the_features_do_not_depend_on_labels_of_other_images(fixture):
    data, info = sorted_set(fixture), fixture.dataset.info
    config = dataclasses.replace(CONFIG, simclr=dataclasses.replace(CONFIG.simclr, steps=3))
    images, labels = data.split
    other = np.where(data.kinds == TRUSTED, labels, (labels + 1) % 4)
    third = np.where(data.kinds == TRUSTED, (labels + np.arange(100)) % 4, labels)
    ends = [
        fit(features_loop(KEY, fixture.model, Sorted(Split(images, one), data.kinds), config, info))
        for one in (labels, other.astype(np.int32), third.astype(np.int32))
    ]
    kernels = [jax.tree.leaves(state.variables.params) for state, _ in ends]
    for one, same in zip(*kernels[:2], strict=True):
        np.testing.assert_array_equal(one, same)
    assert any(not np.array_equal(a, b) for a, b in zip(kernels[0], kernels[2], strict=True))
    network = without_projector(ends[0][0].variables)
    wanted = jax.eval_shape(fixture.model.init, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), network, wanted)


def test_the_learning_rate_of_the_features_rises_during_the_warm_up(fixture):
    """Images of an epoch are one batch, so the warm-up of 4 epochs has 4 steps."""
    data, info = sorted_set(fixture), fixture.dataset.info
    optimizer = OptimConfig(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")
    own = dataclasses.replace(CONFIG.simclr, optimizer=optimizer)
    loops = [
        features_loop(
            KEY, fixture.model, data, dataclasses.replace(CONFIG, simclr=own, warm_up=count), info
        )
        for count in (0, 4)
    ]
    step, risen, state = jax.jit(loops[0].step), jax.jit(loops[1].step), loops[1].state
    for factor in (0.25, 0.5, 0.75, 1, 1):
        plain = dataclasses.replace(loops[0].state, variables=state.variables, step=state.step)
        whole, _ = step(plain, loops[0].data)
        after, _ = risen(state, loops[1].data)
        moved = [
            np.concatenate(
                [
                    np.ravel(new - old)
                    for new, old in zip(
                        jax.tree.leaves(one.variables.params),
                        jax.tree.leaves(state.variables.params),
                        strict=True,
                    )
                ]
            )
            for one in (after, whole)
        ]
        assert np.linalg.norm(moved[0]) == pytest.approx(
            factor * np.linalg.norm(moved[1]), rel=1e-3
        )
        state = after


def test_the_classifier_is_trained_towards_trusted_images_and_away_from_suspects(fixture):
    images = as_float(jnp.asarray(fixture.samples.images[:30]))
    labels = (jnp.asarray(fixture.samples.labels[:30]) + jnp.arange(30) % 2) % 4
    kinds = jnp.asarray([TRUSTED, SUSPECT, TRUSTED] * 10, jnp.int8)
    logits = np.asarray(
        fixture.model.apply(fixture.variables, images, train=False).logits, np.float64
    )
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    each = -logs[np.arange(30), np.asarray(labels)]
    loss = classifier_loss(fixture.model, 0.3)
    mask = np.asarray(kinds) == TRUSTED
    batch = Drawn(images, labels, kinds)
    params, own = fixture.variables
    found, (stats, _) = loss(params, own, batch, KEY, None)
    assert float(found) == pytest.approx(each[mask].mean() - 0.3 * each[~mask].mean(), rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, stats, fixture.variables.batch_stats)
    only = Drawn(images, labels, jnp.full(30, TRUSTED, jnp.int8))
    assert float(loss(params, own, only, KEY, None)[0]) == pytest.approx(each.mean(), rel=1e-4)
    slopes = jax.grad(lambda params: loss(params, stats, batch, KEY, None)[0])(params)
    for name, one in slopes.items():
        moved = any(bool(leaf.any()) for leaf in jax.tree.leaves(one))
        assert moved == (name == "head"), name


def test_only_the_classifier_changes_and_it_begins_with_new_weights(fixture):
    """With weight decay, too, all other parameters stay as they are."""
    data, info = sorted_set(fixture), fixture.dataset.info
    optimizer = OptimConfig(lr=0.1, weight_decay=0.1, schedule="constant")
    head = ClassifierConfig(steps=3, batch_size=50, optimizer=optimizer)
    config = dataclasses.replace(CONFIG, classifier=head)
    loop = classifier_loop(KEY, fixture.model, fixture.variables, data, config, info)
    after = fit(loop)[0].variables
    assert isinstance(after, Variables)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, fixture.variables.batch_stats)
    begun, own = loop.state.variables.params, fixture.variables.params
    for name in own:
        for start, end, one in zip(
            *(jax.tree.leaves(part[name]) for part in (begun, after.params, own)), strict=True
        ):
            assert np.array_equal(start, one) == (name != "head"), name
            assert np.array_equal(end, one) == (name != "head"), name


def test_the_defence_lowers_the_asr(fixture):
    found = testing.check_training_defense(
        make_d_st(CONFIG, fixture.dataset.info), fixture, asr=0.3, acc=0.8
    )
    assert found.found["suspects"].sum() == 20 and found.found["labelled"].sum() == 80
    assert found.trace["step"][-1] == 10 + 120 + 60


def test_d_st_and_d_br_share_their_first_stage(fixture):
    info = fixture.dataset.info
    assert DSTConfig().build(info).settings == DBRConfig().build(info).settings
    assert DSTConfig(preset="short").build(info).settings == DSTConfig().build(info).settings
    defenses = (CONFIG.build(info), DBRConfig(separation=CONFIG.separation).build(info))
    ends = [fit(one.begin(KEY, fixture.model, fixture.samples))[0].variables for one in defenses]
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"simclr": SimCLRConfig()}, "simclr.batch_size: 512 is more than the 400 images"),
        (
            {"classifier": ClassifierConfig()},
            "classifier.batch_size: 512 is more than the 100 images of D_c and D_p",
        ),
        ({"separation": SeparationConfig(poisoned=0.002)}, "poisoned: 0.002 of the 400 images is"),
    ],
)
def test_too_few_images_are_refused(fixture, change, words):
    config = dataclasses.replace(CONFIG, **change)
    shapes = jax.eval_shape(fixture.model.init, KEY)
    check = config.build(fixture.dataset.info).check
    testing.check_refuses(check, fixture.model, shapes, 400, 0, words=words)


def test_a_model_without_a_classifier_of_that_name_is_refused(fixture):
    shapes = jax.eval_shape(fixture.model.init, KEY)
    params = {name: one for name, one in shapes.params.items() if name != "head"}
    check = CONFIG.build(fixture.dataset.info).check
    testing.check_refuses(check, fixture.model, Variables(params, {}), 400, 0, words="classifier")
