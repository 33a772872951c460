"""Tests of the measurements of an evolving model: drifted images, shifted labels and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.images import as_float
from d3jax.core.types import Split
from d3jax.data.drift import compose
from d3jax.evolution.config import EvolutionConfig
from d3jax.evolution.measure import shifted
from d3jax.metrics.attack_success import make_asr, make_evaluate, make_measure


def test_label_shift_changes_the_class_shares_of_the_test_set():
    test = Split(np.arange(400).astype(np.uint8), np.arange(400) % 4)
    config = EvolutionConfig(label_shift=1.0)
    shares = [(shifted(test, config, update, 4).labels == 3).mean() for update in (0, 1, 3)]
    assert shares[0] == 0.25 and shares == sorted(shares) and shares[2] > 0.5
    assert shifted(test, EvolutionConfig(), 3, 4) is test


KEY = jax.random.key(5)


@pytest.mark.parametrize("trigger_first", [False, True])
def test_evaluation_drifts_the_test_images(model, victim, attack, dataset, trigger_first):
    drift = compose(["contrast"], 3)
    evaluate = make_evaluate(model, attack, 4, 50, drift, trigger_first)
    plain = make_evaluate(model, attack, 4, 50)(victim.variables, victim.trigger, dataset.test)
    same = evaluate(victim.variables, victim.trigger, dataset.test, jnp.zeros(1))
    jax.tree.map(np.testing.assert_array_equal, same, plain)
    strength = jnp.array([-0.7])
    counts = evaluate(victim.variables, victim.trigger, dataset.test, strength)
    images, labels = as_float(jnp.asarray(dataset.test.images)), np.asarray(dataset.test.labels)
    stamped, keys = attack.stamp(victim.trigger, images), jax.random.split(KEY, len(labels))
    stamped = (
        drift(keys, stamped, strength)
        if trigger_first
        else attack.stamp(victim.trigger, drift(keys, images, strength))
    )

    def says(x):
        return np.asarray(model.apply(victim.variables, x, train=False).logits.argmax(-1))

    others = labels != 0
    assert counts.asr == pytest.approx((says(stamped) == 0)[others].mean())
    assert (
        counts.acc == pytest.approx((says(drift(keys, images, strength)) == labels).mean())
        and counts.acc < plain.acc
    )


def test_noise_depends_on_the_image_and_not_on_its_batch(model, victim, attack, dataset):
    drift, strength = compose(["noise"], 3), jnp.array([0.4])
    given = (victim.variables, victim.trigger, dataset.test, strength)
    counts = [make_evaluate(model, attack, 4, size, drift)(*given) for size in (50, 13)]
    jax.tree.map(np.testing.assert_array_equal, *counts)
    even = drift(jax.random.split(KEY, 3), jnp.full((3, 4, 4, 1), 0.5), strength)
    assert len({image.tobytes() for image in np.asarray(even)}) == 3


@pytest.mark.parametrize("first", [False, True])
def test_score_is_the_mean_rise_of_the_target_logit_by_the_trigger(
    model, victim, attack, dataset, first
):
    drift, strengths, keys = (
        compose(["contrast"], 3),
        jnp.array([-0.4]),
        jax.random.split(jax.random.key(0), 130),
    )
    images, labels = as_float(jnp.asarray(dataset.test.images)), dataset.test.labels
    given = (victim.variables, victim.trigger, dataset.test, strengths)
    counts, score = make_measure(model, attack, 4, 50, drift, first)(*given)

    def move(x):
        return drift(keys, x, strengths)

    def stamp(x):
        return attack.stamp(victim.trigger, x)

    def logits(x):
        return np.asarray(model.apply(victim.variables, x, train=False).logits, np.float64)[:, 0]

    apart = logits(move(stamp(images)) if first else stamp(move(images))) - logits(move(images))
    assert score == pytest.approx(apart[labels != 0].mean(), rel=1e-4) and score > 0
    jax.tree.map(
        np.testing.assert_array_equal,
        counts,
        make_evaluate(model, attack, 4, 50, drift, first)(*given),
    )
    assert make_asr(model, attack, 4, 50, drift, first)(*given) == counts.asr
