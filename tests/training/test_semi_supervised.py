"""Tests of MixMatch and FixMatch: losses against NumPy, and accuracy from few labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.loading import loads
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import Split
from d3jax.defenses.training_time.suspicion import first_stage_loop
from d3jax.metrics.attack_success import predict
from d3jax.study.run import REGISTRIES
from d3jax.training import fit
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

KEY = jax.random.key(11)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_sharpening_matches_numpy(rng):
    p = softmax(rng.normal(size=(6, 5)))
    np.testing.assert_allclose(
        sharpen(jnp.asarray(p), 0.5), p**2 / (p**2).sum(1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(sharpen(jnp.asarray(p), 1.0), p, rtol=1e-5)
    np.testing.assert_allclose(sharpen(jnp.array([[0.0, 1.0, 0.0]]), 0.5), [[0, 1, 0]], atol=1e-12)


def test_mixed_images_keep_the_larger_share_of_themselves(rng):
    images, targets = jnp.asarray(rng.random((64, 2, 2, 1)), jnp.float32), jnp.eye(64)
    others = jnp.roll(jnp.arange(64), 1)
    mixed, labels = mix(KEY, images, targets, others, 0.75)
    share = np.asarray(labels[jnp.arange(64), jnp.arange(64)])
    assert (share >= 0.5).all() and share.min() < 0.6 and share.max() > 0.95
    np.testing.assert_allclose(labels[jnp.arange(64), others], 1 - share, atol=1e-6)
    wanted = share[:, None, None, None] * images + (1 - share)[:, None, None, None] * images[others]
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)


def test_dealt_batches_have_equal_shares_of_every_kind():
    rows = jnp.arange(12)
    hands = deal(rows, 3)
    assert hands.shape == (3, 4) and gather_dealt(hands).tolist() == rows.tolist()
    for hand in hands:
        assert [int(((hand >= low) & (hand < low + 4)).sum()) for low in (0, 4, 8)] in (
            [2, 1, 1],
            [1, 2, 1],
            [1, 1, 2],
        )


def test_mixmatch_terms_match_numpy(rng):
    logits, others = rng.normal(size=(8, 5)), rng.normal(size=(16, 5))
    targets, guesses = softmax(rng.normal(size=(8, 5))), softmax(rng.normal(size=(16, 5)))
    labelled, unlabelled = mixmatch_terms(*map(jnp.asarray, (logits, targets, others, guesses)))
    assert float(labelled) == pytest.approx(
        -(targets * np.log(softmax(logits))).sum(1).mean(), rel=1e-5
    )
    assert float(unlabelled) == pytest.approx(((softmax(others) - guesses) ** 2).mean(), rel=1e-5)


def test_fixmatch_term_matches_numpy_and_has_no_gradient_to_pseudo_labels(rng):
    weak, strong = 4 * rng.normal(size=(40, 5)), rng.normal(size=(40, 5))
    value, kept = fixmatch_term(jnp.asarray(weak), jnp.asarray(strong), 0.95)
    p = softmax(weak)
    counts = p.max(1) >= 0.95
    ce = -np.log(softmax(strong))[np.arange(40), p.argmax(1)]
    assert 0 < counts.sum() < 40
    assert float(value) == pytest.approx((counts * ce).sum() / 40, rel=1e-5) and float(
        kept
    ) == pytest.approx(counts.mean())
    gradient = jax.grad(lambda x: fixmatch_term(x, jnp.asarray(strong), 0.95)[0])(jnp.asarray(weak))
    assert not gradient.any()  # no gradient flows through the pseudo-labels


def drawn(dataset, share=0.4, count=12):
    images = as_float(jnp.asarray(dataset.train.images))
    labels, others = jnp.asarray(dataset.train.labels[:count]), images[count : 2 * count]
    return Drawn(images[:count], labels, others, others[:, :, ::-1], jnp.float32(share))


def test_mixmatch_loss_matches_numpy(model, victim, dataset):
    """NumPy computes the whole loss from the model's outputs.

    It repeats the guesses, the mixing, the dealing into batches and the weights of both terms.
    """
    batch, config = drawn(dataset), SemiConfig()
    value, (stats, found) = mixmatch(config, model)(*victim.variables, batch, KEY, None)

    def run(images):
        return model.apply(victim.variables, images, train=True)

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
def test_plain_statistics_are_of_labelled_and_unlabelled_images(method, model, victim, dataset):
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


def test_weight_of_unlabelled_images_ramps_up_linearly(model, victim, dataset):
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


def test_fixmatch_loss_matches_numpy(model, victim, dataset):
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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mixmatch", "fixmatch"])
def test_unlabelled_images_raise_the_accuracy(method, model, dataset):
    """On noisy images with two labels a class, they add to training on the labels alone."""
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

    def right(v):
        return float(
            (np.asarray(predict(model, v, test.astype(np.uint8))) == dataset.test.labels).mean()
        )

    start = model.init(KEY)
    own = {"threshold": 0.8} if method == "fixmatch" else {}
    config = SemiConfig(method=method, steps=300, batch_size=8, **own)
    hidden = Split(
        split.images, np.where(np.isin(np.arange(400), labelled), labels, -7)
    )  # -7: a label that must not be read
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
    if method == "mixmatch":  # mixing alone gains less
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
        ({"method": "fixmatch", "alpha": 0.5}, "alpha: 0.5 does not apply to method: fixmatch"),
        ({"threshold": 0.9}, "threshold: 0.9 does not apply to method: mixmatch"),
    ],
)
def test_settings_of_the_other_method_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SemiConfig(**settings)


def test_each_method_has_its_own_default_optimiser_in_a_file():
    text = "defenses: [{name: dlp, semi: {method: fixmatch}}, {name: dlp, label: other}]"
    fix, mixed = (choice.config.semi for choice in loads(text, registries=REGISTRIES).defenses)
    assert (fix.optimizer.name, fix.optimizer.lr) == ("sgd", 0.03)
    assert mixed.optimizer == OptimConfig(name="adam", lr=2e-3, weight_decay=0.0, schedule="cosine")
