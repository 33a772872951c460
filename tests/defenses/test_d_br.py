"""Tests of D-BR: passes over suspects and trusted images, the choice of an epoch, the removal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import Split
from d3jax.defenses.training_time.consistency import SeparationConfig
from d3jax.defenses.training_time.d_br import DBRConfig, make_d_br, removal_data
from d3jax.defenses.training_time.removal import (
    Removal,
    Turn,
    make_draw,
    passes,
    removal_loop,
    removal_loss,
    removal_optimizer,
)
from d3jax.metrics.attack_success import predict, triggered_split
from d3jax.training.loop import fit

from .test_consistency import recipe

KEY = jax.random.key(5)

SEPARATION = SeparationConfig(first=recipe(60), intra=recipe(10, 0.01), shift=0.0)


def relearning(epochs=0, steps=0, lr=0.01):
    """Return a recipe of the removal with batches of 16 images."""
    optimizer = OptimConfig(lr=lr, weight_decay=0.0, schedule="constant")
    return TrainConfig(
        epochs=epochs or 1, steps=steps, batch_size=16, augment="none", optimizer=optimizer
    )


def test_the_presets_have_the_published_settings():
    authors, bench, short = (
        DBRConfig(preset=name) for name in ("authors", "backdoorbench", "short")
    )
    assert authors == DBRConfig() and authors.separation == SeparationConfig()
    assert (authors.train.epochs, authors.relearn.epochs, authors.ascent) == (200, 20, 1e-4)
    assert authors.train.optimizer == OptimConfig(lr=0.01, schedule="half_drop")
    assert authors.relearn.optimizer == OptimConfig(lr=1e-4, schedule="constant")
    assert (authors.relearn.batch_size, authors.relearn.augment) == (128, "auto")
    assert (authors.rule, bench.rule, short.rule) == ("defender", "last", "defender")
    assert bench.train == TrainConfig() and bench.relearn == authors.relearn
    assert (short.separation.first, short.ascent) == (authors.separation.first, authors.ascent)
    assert (short.separation.intra.epochs, short.train.epochs, short.relearn.epochs) == (3, 12, 10)


def images_of(numbers):
    """Return a set of 2×2 images whose pixels and labels are the given numbers."""
    numbers = np.asarray(numbers)
    images = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 2, 1))
    return Split(images.astype(np.uint8), numbers.astype(np.int32))


def test_an_epoch_passes_over_the_suspects_and_then_over_the_trusted_images():
    data = Removal(images_of(range(100, 110)), images_of(range(23)))
    assert passes(10, 23, 4) == (3, 5)
    data = jax.tree.map(jnp.asarray, data)
    draw = make_draw(10, 23, 4, lambda key, images: images)
    epochs = []
    for epoch in range(2):
        drawn = [draw(KEY, jnp.int32(8 * epoch + place), data) for place in range(8)]
        assert [bool(one.away) for one in drawn] == [True] * 3 + [False] * 5
        for one in drawn:
            np.testing.assert_allclose(one.images[:, 0, 0, 0] * 255, one.labels, rtol=1e-5)
        labels = [np.asarray(one.labels) for one in drawn]
        suspects, trusted = np.concatenate(labels[:3]), np.concatenate(labels[3:])
        assert set(suspects) == set(range(100, 110)) and len(suspects) == 12  # two of them twice
        assert len(set(trusted)) == 20 and trusted.max() < 23
        epochs.append((suspects, trusted))
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    assert not np.array_equal(epochs[0][1], epochs[1][1])


def test_more_images_than_suspects_in_a_batch_repeat_them():
    data = jax.tree.map(jnp.asarray, Removal(images_of([7, 8, 9]), images_of(range(6))))
    drawn = make_draw(3, 6, 6, lambda key, images: images)(KEY, jnp.int32(0), data)
    assert bool(drawn.away) and sorted(drawn.labels.tolist()) == [7, 7, 8, 8, 9, 9]


def test_the_loss_is_negative_for_suspects(fixture):
    images = as_float(jnp.asarray(fixture.samples.images[:12]))
    labels = (jnp.asarray(fixture.samples.labels[:12]) + 1) % 4
    outputs = fixture.model.apply(fixture.variables, images, train=True)
    logits = np.asarray(outputs.logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -logs[np.arange(12), np.asarray(labels)].mean()
    loss = removal_loss(fixture.model)
    for away, sign in ((True, -1), (False, 1)):
        batch = Turn(images, labels, jnp.asarray(away))
        params, own = fixture.variables
        found, (stats, reported) = loss(params, own, batch, KEY, None)
        assert float(found) == pytest.approx(sign * wanted, rel=1e-4)
        assert float(reported["loss"]) == pytest.approx(wanted, rel=1e-4)
        jax.tree.map(np.testing.assert_array_equal, stats, outputs.batch_stats)


def test_the_ascent_has_a_constant_rate_and_the_descent_its_schedule():
    """Three epochs of 2 ascents and 4 descents; `drop` makes the last epoch a tenth."""
    optimizer = OptimConfig(lr=0.5, momentum=0.8, weight_decay=0.01, schedule="drop")
    config = DBRConfig(ascent=0.02, relearn=TrainConfig(epochs=3, optimizer=optimizer))
    tx = removal_optimizer(config.ascent, config.relearn.optimizer, 2, 4, 18)
    weight, velocity, params = 1.5, 0.0, jnp.float32(1.5)
    state = tx.init(params)
    for step in range(18):
        slope = 0.3 * step - 1
        moves, state = tx.update(jnp.float32(slope), state, params, step=jnp.int32(step), data=None)
        params = params + moves
        velocity = 0.8 * velocity + slope + 0.01 * weight
        rate = 0.02 if step % 6 < 2 else 0.5 * (0.1 if step >= 12 else 1)
        weight -= rate * velocity
        assert float(params) == pytest.approx(weight, rel=1e-4), step


def sets_of(fixture):
    """Return some suspects, some trusted images, and the test sets, of a fixture."""
    rows = np.flatnonzero(fixture.poisoned)[:20], np.flatnonzero(~fixture.poisoned)[:80]
    suspects, trusted = (
        Split(*(np.asarray(part)[one] for part in fixture.samples)) for one in rows
    )
    test = fixture.dataset.test
    return suspects, trusted, test, triggered_split(fixture.attack, fixture.trigger, test)


def test_each_rule_judges_by_its_own_images(fixture):
    suspects, trusted, test, triggered = sets_of(fixture)
    config = DBRConfig(held_out=0.25)
    found = removal_data(config, KEY, suspects, trusted, None, None)
    assert found.judged and found.triggered
    for whole, kept, held in (
        (suspects, found.suspects, found.triggered),
        (trusted, found.trusted, found.judged),
    ):
        assert len(held.labels) == len(whole.labels) // 4
        parts = [image.tobytes() for one in (kept, held) for image in np.asarray(one.images)]
        assert sorted(parts) == sorted(image.tobytes() for image in np.asarray(whole.images))
    oracle = removal_data(DBRConfig(rule="oracle"), KEY, suspects, trusted, test, triggered)
    assert oracle == Removal(suspects, trusted, test, triggered)
    last = removal_data(DBRConfig(rule="last"), KEY, suspects, trusted, test, triggered)
    assert last == Removal(suspects, trusted)
    with pytest.raises(TypeError, match="rule: oracle reads test data"):
        removal_data(DBRConfig(rule="oracle"), KEY, suspects, trusted, test, None)


def accuracy_of(fixture, variables, split):
    """Return the share of a set's images that are classified as labelled."""
    found = np.asarray(predict(fixture.model, variables, jnp.asarray(split.images)))
    return (found == np.asarray(split.labels)).mean()


def test_the_kept_epoch_has_the_highest_acc_minus_asr(fixture):
    """The scores of the epochs rise and fall, so neither the first nor the last is the best."""
    suspects, trusted, test, triggered = sets_of(fixture)
    recipe = 0.1, relearning(epochs=4)
    given = (KEY, fixture.model, fixture.variables)
    loop, period = removal_loop(
        *given, Removal(suspects, trusted, test, triggered), *recipe, fixture.dataset.info
    )
    assert period == 2 + 5 and loop.steps == 28
    kept = fit(loop)[0].carry
    plain, _ = removal_loop(*given, Removal(suspects, trusted), *recipe, fixture.dataset.info)
    step, state, ends = jax.jit(plain.step), plain.state, []
    for count in range(28):
        state, _ = step(state, plain.data)
        if (count + 1) % 7 == 0:
            ends.append(state.variables)
    scores = [
        accuracy_of(fixture, one, test) - accuracy_of(fixture, one, triggered) for one in ends
    ]
    best = int(np.argmax(scores))
    assert max(scores[0], scores[-1]) < scores[best] - 0.05, scores
    assert float(kept["score"]) == pytest.approx(max(scores), abs=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        kept["variables"], ends[best],
    )  # fmt: skip


CONFIG = DBRConfig(
    separation=SEPARATION,
    train=recipe(150),
    ascent=0.02,
    relearn=relearning(epochs=8, lr=0.02),
    held_out=0.3,
)


def test_the_defence_lowers_the_asr(fixture):
    found = testing.check_training_defense(
        make_d_br(CONFIG, fixture.dataset.info), fixture, asr=0.3, acc=0.8
    )
    assert found.found["suspects"].sum() == 20 and found.found["labelled"].sum() == 80
    assert fixture.poisoned[found.found["suspects"]].mean() > 0.5
    assert found.trace["step"][-1] == 10 + 150 + 8 * (1 + 3)


def test_the_oracle_needs_the_test_sets(fixture):
    info = fixture.dataset.info
    oracle = dataclasses.replace(
        CONFIG, rule="oracle", train=recipe(4), relearn=relearning(steps=3)
    )
    defense = oracle.build(info)
    assert defense.needs == ("test_set", "triggered_set") and defense.rule == "oracle"
    assert CONFIG.build(info).needs == () and CONFIG.build(info).rule == "defender"
    last = dataclasses.replace(oracle, rule="last").build(info)
    assert last.needs == () and last.rule == ""
    *_, test, triggered = sets_of(fixture)
    given = (KEY, fixture.model, fixture.samples, fixture.variables)
    defense.train(*given, test_set=test, triggered_set=triggered)
    with pytest.raises(TypeError, match="give `test_set`, `triggered_set`"):
        defense.train(*given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"separation": SeparationConfig()},
            "separation.first.batch_size: 128 is more than the 100",
        ),
        ({"train": TrainConfig()}, "train.batch_size: 128 is more than the 100 images"),
        (
            {"separation": dataclasses.replace(SEPARATION, poisoned=0.01)},
            "and there is one suspect",
        ),
        (
            {"separation": dataclasses.replace(SEPARATION, clean=0.22)},
            "relearn.batch_size: 16 is more than the 15 trusted images",
        ),
    ],
)
def test_too_few_images_are_refused(fixture, change, words):
    config = dataclasses.replace(CONFIG, **change)
    check = config.build(fixture.dataset.info).check
    testing.check_refuses(check, fixture.model, None, 100, 0, words=words)


def test_the_descent_is_sgd():
    with pytest.raises(ConfigError, match="relearn.optimizer.name: 'adam' does not apply to D-BR"):
        DBRConfig(relearn=TrainConfig(optimizer=OptimConfig(name="adam")))
