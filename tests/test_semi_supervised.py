"""MixMatch's and FixMatch's losses against NumPy, what they learn from few labels, and bounded ascent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.loading import loads
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError, DivergedError
from d3jax.core.images import as_float
from d3jax.core.types import Split, Variables
from d3jax.data.augment import cutout, make_augment
from d3jax.data.randaugment import OPERATIONS, strong_augment
from d3jax.defenses.training_time.suspicion import first_stage_loop
from d3jax.metrics.attack_success import predict
from d3jax.study.run import REGISTRIES
from d3jax.training import Hooks, fit
from d3jax.training.semi_supervised import (  # fmt: skip
    Drawn,
    SemiConfig,
    deal,
    fixmatch,
    fixmatch_term,
    gather_dealt,
    mix,
    mixmatch,
    mixmatch_terms,
    semi_supervised_loop,
    sharpen,
)
from d3jax.training.step import classification_loss
from d3jax.training.unlearn import parts_of, unlearn_loop

KEY = jax.random.key(11)
RNG = np.random.default_rng(4)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_sharpening_against_numpy():
    p = softmax(RNG.normal(size=(6, 5)))
    np.testing.assert_allclose(
        sharpen(jnp.asarray(p), 0.5), p**2 / (p**2).sum(1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(sharpen(jnp.asarray(p), 1.0), p, rtol=1e-5)
    np.testing.assert_allclose(sharpen(jnp.array([[0.0, 1.0, 0.0]]), 0.5), [[0, 1, 0]], atol=1e-12)


def test_mixed_images_are_nearer_to_themselves():
    images, targets = jnp.asarray(RNG.random((64, 2, 2, 1)), jnp.float32), jnp.eye(64)
    others = jnp.roll(jnp.arange(64), 1)
    mixed, labels = mix(KEY, images, targets, others, 0.75)
    share = np.asarray(labels[jnp.arange(64), jnp.arange(64)])
    assert (share >= 0.5).all() and share.min() < 0.6 and share.max() > 0.95
    np.testing.assert_allclose(labels[jnp.arange(64), others], 1 - share, atol=1e-6)
    wanted = share[:, None, None, None] * images + (1 - share)[:, None, None, None] * images[others]
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)


def test_dealt_hands_have_as_many_of_every_kind():
    rows = jnp.arange(12)
    hands = deal(rows, 3)
    assert hands.shape == (3, 4) and gather_dealt(hands).tolist() == rows.tolist()
    for hand in hands:
        assert [int(((hand >= low) & (hand < low + 4)).sum()) for low in (0, 4, 8)] in (
            [2, 1, 1],
            [1, 2, 1],
            [1, 1, 2],
        )


def test_mixmatch_terms_against_numpy():
    logits, others = RNG.normal(size=(8, 5)), RNG.normal(size=(16, 5))
    targets, guesses = softmax(RNG.normal(size=(8, 5))), softmax(RNG.normal(size=(16, 5)))
    labelled, unlabelled = mixmatch_terms(*map(jnp.asarray, (logits, targets, others, guesses)))
    assert float(labelled) == pytest.approx(
        -(targets * np.log(softmax(logits))).sum(1).mean(), rel=1e-5
    )
    assert float(unlabelled) == pytest.approx(((softmax(others) - guesses) ** 2).mean(), rel=1e-5)


def test_fixmatch_term_against_numpy():
    weak, strong = 4 * RNG.normal(size=(40, 5)), RNG.normal(size=(40, 5))
    value, kept = fixmatch_term(jnp.asarray(weak), jnp.asarray(strong), 0.95)
    p = softmax(weak)
    counts = p.max(1) >= 0.95
    ce = -np.log(softmax(strong))[np.arange(40), p.argmax(1)]
    assert 0 < counts.sum() < 40
    assert float(value) == pytest.approx((counts * ce).sum() / 40, rel=1e-5) and float(
        kept
    ) == pytest.approx(counts.mean())
    gradient = jax.grad(lambda x: fixmatch_term(x, jnp.asarray(strong), 0.95)[0])(jnp.asarray(weak))
    assert not gradient.any()  # pseudo-labels teach, they do not learn


def drawn(dataset, share=0.4, count=12):
    images = as_float(jnp.asarray(dataset.train.images))
    labels, others = jnp.asarray(dataset.train.labels[:count]), images[count : 2 * count]
    return Drawn(images[:count], labels, others, others[:, :, ::-1], jnp.float32(share))


def test_the_loss_of_a_mixmatch_step(model, victim, dataset):
    """A whole loss put together in NumPy from the net's outputs: what is guessed, mixed with what, dealt where, weighed how."""
    batch, config = drawn(dataset), SemiConfig()
    value, (stats, found) = mixmatch(config, model)(*victim.variables, batch, KEY, None)
    run = lambda images: model.apply(victim.variables, images, train=True)
    p = (
        softmax(np.asarray(run(batch.first).logits, np.float64))
        + softmax(np.asarray(run(batch.second).logits, np.float64))
    ) / 2
    guesses = p**2 / (p**2).sum(1, keepdims=True)
    key_mix, key_shuffle = jax.random.split(KEY)
    targets = np.concatenate([np.eye(4)[np.asarray(batch.labels)], guesses, guesses])
    images = jnp.concatenate([batch.images, batch.first, batch.second])
    order = jax.random.permutation(key_shuffle, 36)
    images, targets = mix(key_mix, images, jnp.asarray(targets, jnp.float32), order, 0.75)
    outputs = [run(images[i::3]) for i in range(3)]
    logits = np.zeros((36, 4))
    for i in range(3):
        logits[i::3] = outputs[i].logits
    targets = np.asarray(targets, np.float64)
    labelled = -(targets[:12] * np.log(softmax(logits[:12]))).sum(1).mean()
    unlabelled = ((softmax(logits[12:]) - targets[12:]) ** 2).mean()
    assert float(value) == pytest.approx(labelled + 15 * 0.4 * unlabelled, rel=1e-4)
    assert float(found["unlabelled_loss"]) == pytest.approx(unlabelled, rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, outputs[0].batch_stats
    )


@pytest.mark.parametrize("method", ["mixmatch", "fixmatch"])
def test_plain_statistics_are_those_of_both_kinds_of_images(method, model, victim, dataset):
    batch, losses = drawn(dataset), {"mixmatch": mixmatch, "fixmatch": fixmatch}
    trained, plain = (
        losses[method](SemiConfig(method=method, statistics=kind), model)(
            *victim.variables, batch, KEY, None
        )
        for kind in ("trained", "plain")
    )
    assert float(plain[0]) == float(trained[0])
    images = jnp.concatenate([batch.images[:6], batch.first[:6]])
    wanted = model.apply(victim.variables, images, train=True).batch_stats
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain[1][0], wanted)


def test_unlabelled_images_weigh_more_with_every_step(model, victim, dataset):
    config = SemiConfig(steps=10, batch_size=8, ramp=0.5)
    loop = semi_supervised_loop(
        KEY,
        model,
        victim.variables,
        dataset.train,
        np.arange(40),
        np.arange(40, 400),
        config,
        dataset.info,
    )
    step, state, shares = jax.jit(loop.step), loop.state, []
    for _ in range(10):
        state, metrics = step(state, loop.data)
        shares.append(
            float((metrics["loss"] - metrics["clean_loss"]) / metrics["unlabelled_loss"]) / 15
        )
    np.testing.assert_allclose(shares, [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1], atol=0.01)


def test_the_loss_of_a_fixmatch_step(model, victim, dataset):
    batch, config = drawn(dataset, 1.0), SemiConfig(method="fixmatch", threshold=0.6)
    value, _ = fixmatch(config, model)(*victim.variables, batch, KEY, None)
    weighed, _ = fixmatch(dataclasses.replace(config, weight=3.0), model)(
        *victim.variables, batch._replace(share=jnp.float32(0.5)), KEY, None
    )
    images = jnp.concatenate([batch.images, batch.first, batch.second])
    logits = np.asarray(model.apply(victim.variables, images, train=True).logits, np.float64)
    labels = np.asarray(batch.labels)
    labelled = -np.log(softmax(logits[:12]))[np.arange(12), labels].mean()
    p = softmax(logits[12:24])
    ce = -np.log(softmax(logits[24:]))[np.arange(12), p.argmax(1)]
    unlabelled = ((p.max(1) >= 0.6) * ce).sum() / 12
    assert unlabelled > 0 and float(value) == pytest.approx(labelled + unlabelled, rel=1e-4)
    assert float(weighed) == pytest.approx(labelled + 1.5 * unlabelled, rel=1e-4)


@pytest.mark.parametrize("method", ["mixmatch", "fixmatch"])
def test_unlabelled_images_help(method, model, dataset):
    """From two labels a class, on noisy images, better than from these alone."""
    images, labels = np.asarray(dataset.train.images), np.asarray(dataset.train.labels)
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 120, images.shape), 0, 255).astype(
        np.uint8
    )
    split = Split(noisy, labels)
    test = np.clip(
        np.asarray(dataset.test.images)
        + np.random.default_rng(1).normal(0, 120, dataset.test.images.shape),
        0,
        255,
    )
    labelled = np.concatenate([np.flatnonzero(labels == k)[:2] for k in range(4)])
    unlabelled = np.setdiff1d(np.arange(400), labelled)
    right = lambda v: float(
        (np.asarray(predict(model, v, test.astype(np.uint8))) == dataset.test.labels).mean()
    )
    start = model.init(KEY)
    own = {"threshold": 0.8} if method == "fixmatch" else {}
    config = SemiConfig(method=method, steps=300, batch_size=8, **own)
    hidden = Split(
        split.images, np.where(np.isin(np.arange(400), labelled), labels, -7)
    )  # labels that nobody may read
    semi = fit(
        semi_supervised_loop(KEY, model, start, hidden, labelled, unlabelled, config, dataset.info)
    )[0].variables
    few = Split(noisy[labelled], labels[labelled])
    recipe = TrainConfig(
        steps=300,
        batch_size=8,
        optimizer=dataclasses.replace(config.optimizer, schedule="constant"),
    )
    alone = fit(
        first_stage_loop(KEY, model, few, recipe, dataset.info, classification_loss(model))
    )[0].variables
    assert right(semi) > right(alone) + 0.05, (right(semi), right(alone))
    if method == "mixmatch":  # it is not mixing alone that helps
        config = dataclasses.replace(config, weight=0.0)
        mixed = fit(
            semi_supervised_loop(
                KEY, model, start, hidden, labelled, unlabelled, config, dataset.info
            )
        )[0].variables
        assert right(semi) > right(mixed) + 0.02, (right(semi), right(mixed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fixmatch", "alpha": 0.5}, "alpha: 0.5 stands beside method: fixmatch"),
        ({"threshold": 0.9}, "threshold: 0.9 stands beside method: mixmatch"),
    ],
)
def test_settings_of_the_other_method_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SemiConfig(**settings)


def test_a_method_has_its_own_optimiser_from_a_file_too():
    text = "defenses: [{name: dlp, semi: {method: fixmatch}}, {name: dlp, label: other}]"
    fix, mixed = (choice.config.semi for choice in loads(text, registries=REGISTRIES).defenses)
    assert (fix.optimizer.name, fix.optimizer.lr) == ("sgd", 0.03)
    assert mixed.optimizer == OptimConfig(name="adam", lr=2e-3, weight_decay=0.0, schedule="cosine")


def test_strong_augmentation_keeps_the_range_and_differs_by_image():
    images = jnp.asarray(RNG.random((32, 10, 12, 3)), jnp.float32)
    found = jax.jit(strong_augment)(KEY, images)
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
    changed = np.abs(np.asarray(found - images)).mean((1, 2, 3))
    assert (changed > 0.01).mean() > 0.8 and len(set(changed.tolist())) > 25
    images = images.at[0, 0].set(1.0)
    for operation, _ in OPERATIONS:
        np.testing.assert_allclose(operation(KEY, images, jnp.float32(0.0)), images, atol=1 / 255)


def test_cutout_takes_a_square_out(dataset):
    images = jnp.ones((200, 9, 7, 2))
    black = np.asarray(cutout(KEY, images, 3) == 0)
    assert (black[..., 0] == black[..., 1]).all()
    count = black[..., 0].sum((1, 2))
    assert (
        count.max() == 9 and count.min() == 4 and set(count) == {4, 6, 9}
    )  # whole, at an edge, in a corner
    found = make_augment(dataclasses.replace(dataset.info, crop=0, flip=False), "cutout")(
        KEY, jnp.ones((200, 9, 7, 2))
    )
    assert set(np.asarray(found == 0)[..., 0].sum((1, 2))) == {1, 2, 4}  # ABL's two pixels
    assert set(np.asarray(cutout(KEY, images[:, :5, :5], 2) == 0)[..., 0].sum((1, 2))) == {1, 2, 4}


def ascended(model, victim, dataset, steps=60, lr=0.5, log_every=1, **options):
    labels = np.asarray(dataset.train.labels)
    suspects, trusted = np.flatnonzero(labels == 2)[:24], np.flatnonzero(labels != 2)
    loop = unlearn_loop(
        KEY, model, victim.variables, dataset.train, suspects, trusted, tx=optax.sgd(lr, momentum=0.9), steps=steps,
        batch_size=12, **options,
    )  # fmt: skip
    state, lines = fit(loop, Hooks(log_every=log_every))
    right = lambda rows: float(
        (
            np.asarray(predict(model, state.variables, dataset.train.images[rows])) == labels[rows]
        ).mean()
    )
    return state, lines, right(suspects), right(trusted)


def test_ascent_unlearns_and_rests_at_chance(model, victim, dataset):
    state, lines, suspects, _ = ascended(model, victim, dataset)
    assert suspects < 0.5 and lines[-1]["resting"] == 1 and lines[0]["resting"] == 0, (
        suspects,
        lines[-1],
    )
    first = next(i for i, line in enumerate(lines) if line["resting"])
    assert lines[first]["suspects_accuracy"] < 1 / 4
    assert int(state.step) == first + 1 == len(lines) < 60  # it ends there
    again, *_ = ascended(model, victim, dataset, log_every=60)
    jax.tree.map(
        np.testing.assert_array_equal, state.variables, again.variables
    )  # and nothing moves where it goes on
    with pytest.raises(DivergedError):  # what has no upper bound
        ascended(model, victim, dataset, bounded=False)


def test_one_step_of_ascent_is_sgd_uphill(model, victim, dataset):
    state, *_ = ascended(model, victim, dataset, steps=1, lr=0.01, batch_norm="frozen")
    jax.tree.map(
        np.testing.assert_array_equal, state.variables.batch_stats, victim.variables.batch_stats
    )
    rows = np.flatnonzero(np.asarray(dataset.train.labels) == 2)[:24]

    def loss(params, mine):
        logits = model.apply(
            Variables(params, victim.variables.batch_stats),
            as_float(jnp.asarray(dataset.train.images[mine])),
            train=False,
        ).logits
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.full(len(mine), 2)
        ).mean()

    before, after = (float(loss(v.params, rows)) for v in (victim.variables, state.variables))
    gradient = jax.grad(loss)(victim.variables.params, rows)
    moved = jax.tree.map(
        lambda a, b: np.asarray(a - b), state.variables.params, victim.variables.params
    )
    along = sum(
        float((np.asarray(g) * m).sum())
        for g, m in zip(jax.tree.leaves(gradient), jax.tree.leaves(moved), strict=True)
    )
    assert after > before and along > 0


@pytest.mark.parametrize("descent", ["turns", "together"])
def test_descent_keeps_what_is_trusted(descent, model, victim, dataset):
    *_, suspects, trusted = ascended(model, victim, dataset, steps=60, descent=descent)
    *_, alone = ascended(model, victim, dataset, steps=60)
    assert suspects < 0.4 and trusted > 0.8 and trusted > alone + 0.05, (suspects, trusted, alone)


def test_a_step_together_is_one_of_sgd_on_both_losses(model, victim, dataset):
    """A quarter of the batch are suspects; all of it is under its own statistics, which are learned."""
    labels = np.asarray(dataset.train.labels)
    suspects, trusted = (
        np.flatnonzero(labels == 2)[:3],
        np.flatnonzero(labels != 2)[:9],
    )  # as many as a batch has
    loop = unlearn_loop(
        KEY, model, victim.variables, dataset.train, suspects, trusted, tx=optax.sgd(0.01), steps=1, batch_size=12, kind="uniform",
        descent="together",
    )  # fmt: skip
    state, (line,) = fit(loop)
    images, rows = as_float(jnp.asarray(dataset.train.images)), np.concatenate([suspects, trusted])

    def loss(params):
        outputs = model.apply(
            Variables(params, victim.variables.batch_stats), images[rows], train=True
        )
        logs = jax.nn.log_softmax(outputs.logits)
        even = -(logs[:3].mean(-1) + np.log(4)).mean()
        return even - logs[np.arange(3, 12), labels[trusted]].mean(), outputs

    (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(victim.variables.params)
    wanted = jax.tree.map(lambda p, g: p - 0.01 * g, victim.variables.params, gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.variables.params, wanted
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        state.variables.batch_stats,
        outputs.batch_stats,
    )
    ce = -np.asarray(jax.nn.log_softmax(outputs.logits))[np.arange(3), 2].mean()
    assert line["loss"] == pytest.approx(ce, rel=1e-4) and line["resting"] == 0


@pytest.mark.parametrize(("suspects", "parts"), [(50, (32, 96)), (32, (32, 96)), (3, (3, 125))])
def test_a_batch_of_both_has_the_size_that_is_given(suspects, parts):
    assert parts_of(128, "together", 0.25, suspects) == parts
    assert parts_of(128, "turns", 0.25, suspects) == (128, 128) and parts_of(
        128, "none", 0.25, suspects
    ) == (128, 0)
    with pytest.raises(ConfigError, match="128 has no room for trusted images"):
        parts_of(128, "together", 1.0, 128)


def resting_twice(model, victim, dataset, trusted, descent):
    """Two states, one after the other, between which the suspects, who were right at first, rest."""
    rows = np.flatnonzero(np.asarray(dataset.train.labels) == 2)[:24]
    loop = unlearn_loop(
        KEY, model, victim.variables, dataset.train, rows, trusted, tx=optax.sgd(0.05, momentum=0.9), steps=40, batch_size=12,
        kind="uniform", descent=descent, batch_norm="frozen",
    )  # fmt: skip
    step, state, before = jax.jit(loop.step), loop.state, {"resting": 0}
    for _ in range(40):
        after, metrics = step(state, loop.data)
        if metrics["resting"] and before["resting"]:
            assert state.carry.moves > 0
            return state, after
        state, before = after, metrics
    raise AssertionError("the suspects never rested twice")


def test_momentum_of_suspects_that_rest_stands_in_turns(model, victim, dataset):
    trusted = np.flatnonzero(np.asarray(dataset.train.labels) != 2)
    state, after = resting_twice(model, victim, dataset, trusted, "turns")
    jax.tree.map(np.testing.assert_array_equal, after.opt_state[0], state.opt_state[0])


def test_momentum_runs_down_together_while_suspects_rest(model, victim, dataset):
    """One velocity is left of both, and what is added to it is the gradient of the trusted images alone."""
    labels = np.asarray(dataset.train.labels)
    trusted = np.flatnonzero(labels != 2)[:9]  # as many as a batch has
    state, after = resting_twice(model, victim, dataset, trusted, "together")
    images = as_float(jnp.asarray(dataset.train.images[trusted]))

    def loss(params):
        logits = model.apply(
            Variables(params, state.variables.batch_stats), images, train=False
        ).logits
        return -jax.nn.log_softmax(logits)[np.arange(9), labels[trusted]].mean()

    was, now = (optax.tree.get(s.opt_state, "trace") for s in (state, after))
    wanted = jax.tree.map(lambda v, g: 0.9 * v + g, was, jax.grad(loss)(state.variables.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), now, wanted)


@pytest.mark.parametrize("descent", ["turns", "together"])
def test_suspects_that_were_never_right_move_nothing(descent, model, victim, dataset):
    """What is learned then is what is learned without them; but for the statistics of a batch they are in."""
    labels = np.asarray(dataset.train.labels)
    trusted = np.flatnonzero(labels != 2)
    found = []
    for rows in (np.flatnonzero(labels == 2)[:24], np.flatnonzero(labels == 3)[:24]):
        given = labels.copy()
        given[rows] = (
            np.asarray(predict(model, victim.variables, dataset.train.images[rows])) + 1
        ) % 4
        split = Split(dataset.train.images, given)
        rest = np.setdiff1d(trusted, np.flatnonzero(labels == 3)[:24])
        options = {
            "tx": optax.sgd(0.05, momentum=0.9),
            "steps": 3,
            "batch_size": 12,
            "descent": descent,
            "batch_norm": "frozen",
        }
        state, _ = fit(unlearn_loop(KEY, model, victim.variables, split, rows, rest, **options))
        assert state.carry.resting and state.carry.moves == 0
        found.append(state.variables)
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (found[0], victim.variables)), strict=True)
    )


def test_towards_an_even_prediction(model, victim, dataset):
    state, lines, *_ = ascended(
        model, victim, dataset, steps=60, lr=0.01, kind="uniform", bounded=False
    )
    rows = np.flatnonzero(np.asarray(dataset.train.labels) == 2)[:24]
    logits = model.apply(
        state.variables, as_float(jnp.asarray(dataset.train.images[rows])), train=False
    ).logits
    before = model.apply(
        victim.variables, as_float(jnp.asarray(dataset.train.images[rows])), train=False
    ).logits
    sure = [float(jax.nn.softmax(x).max(-1).mean()) for x in (before, logits)]
    assert sure[1] < sure[0] - 0.3, sure
    assert np.isfinite(lines[-1]["loss"])
