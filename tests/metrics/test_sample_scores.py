"""Tests of sample scores against NumPy, and of their AUROC, precision and recall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.images import as_float
from d3jax.core.types import Model, Outputs
from d3jax.metrics.sample_scores import (
    auroc,
    choice_rates,
    curves_of,
    entropy,
    filter_rates,
    mixture,
    precision_recall,
    ranking,
    scores_of,
    symmetric_cross_entropy,
)

KEY = jax.random.key(3)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_entropy_and_symmetric_cross_entropy_match_numpy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 4, (50, 7)), rng.integers(0, 7, 50)
    p = softmax(logits)
    np.testing.assert_allclose(
        entropy(jnp.asarray(logits)), -(p * np.log(p)).sum(1), rtol=2e-4, atol=1e-6
    )
    given = p[np.arange(50), labels]
    one_hot = np.eye(7)[labels]
    reverse = -(p * np.log(np.clip(one_hot, 1e-4, 1))).sum(1)
    np.testing.assert_allclose(
        symmetric_cross_entropy(jnp.asarray(logits), jnp.asarray(labels)),
        -0.1 * np.log(given) + reverse,
        rtol=2e-4,
        atol=1e-5,
    )
    certain = entropy(jnp.array([[100.0, 0.0, -100.0], [0.0, 0.0, 0.0]]))
    assert certain[0] == 0 and certain[1] == pytest.approx(np.log(3))


def test_scores_of_a_model_match_numpy_and_stay_defined_without_finite_logits(
    model, victim, dataset
):
    images, labels = dataset.test
    found = scores_of(model, victim.variables, dataset.test, batch_size=48)
    logits = np.asarray(
        model.apply(victim.variables, as_float(jnp.asarray(images)), train=False).logits, np.float64
    )
    np.testing.assert_allclose(
        found["cross_entropy"],
        -np.log(softmax(logits)[np.arange(len(labels)), labels]),
        rtol=1e-3,
        atol=1e-5,
    )
    assert set(found) == {"entropy", "cross_entropy", "symmetric", "mixture"}
    assert all(values.shape == (130,) and values.dtype == np.float32 for values in found.values())
    given = np.where(np.arange(130) % 3, labels, (labels + 1) % 4)
    right = scores_of(model, victim.variables, dataset.test._replace(labels=given), ("right",))[
        "right"
    ]
    np.testing.assert_array_equal(right, logits.argmax(1) == given)
    assert 0 < right.mean() < 1
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, victim.variables)
    lost = scores_of(model, broken, dataset.test, ("right", "entropy"))
    assert lost["right"].sum() == 0 and np.isinf(lost["entropy"]).all()

    def half(variables, images, train):
        return Outputs(jnp.tile(jnp.array([9.0, -jnp.inf]), (len(images), 1)), {}, {})

    lost = scores_of(
        Model(model.init, half), broken, dataset.test._replace(labels=np.zeros(130, np.int32))
    )
    assert all(
        np.isinf(lost[name]).all() for name in ("entropy", "cross_entropy", "symmetric")
    )  # although the finite logit alone looks certain


def test_mixture_separates_two_groups_of_losses():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 0.1, 100), rng.normal(3, 1, 300), [-2.0]]).astype(
        np.float32
    )
    upper = mixture(values)
    assert upper[:100].mean() < 0.05 and upper[100:400].mean() > 0.95
    assert upper[-1] < 0.5  # the loss is low, although the wide group is denser there
    assert np.all(np.diff(upper[np.argsort(values)]) >= 0)
    wide = np.concatenate(
        [rng.normal(0.8, 0.5, 300).clip(0), rng.normal(2.3, 0.05, 700), [4.0, 5.0]]
    ).astype(np.float32)
    assert (
        250 < np.sum(mixture(wide) < 0.5) < 310
    )  # losses far above a narrow upper group are not in the lower one
    assert mixture(np.ones(5, np.float32)).tolist() == [1] * 5
    assert mixture(np.array([0.0, 0.0, 9.0, np.inf], np.float32))[3] == 1


def test_ranking_precision_recall_and_auroc_match_counts_by_hand():
    scores = np.array([3.0, 1.0, 1.0, 2.0, 1.0])
    assert ranking(scores).tolist() == [1, 2, 4, 3, 0] and ranking(
        scores, np.array([0, 3, 2, 0, 1.0])
    ).tolist() == [
        4,
        2,
        1,
        3,
        0,
    ]
    flags = np.array([False, True, False, True, True])
    precision, recall = precision_recall(scores, flags)
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    np.testing.assert_allclose(recall, [1 / 3, 1 / 3, 2 / 3, 1, 1])
    assert auroc(scores, flags) == pytest.approx(
        (1 + 0.5 + 1 + 0.5 + 1 + 0) / 6
    )  # six pairs by hand
    assert (
        np.isnan(auroc(scores, np.zeros(5, bool)))
        and auroc(np.array([np.inf, 0.0]), np.array([False, True])) == 1
    )


def test_a_clean_set_has_no_precision():
    found = {name: np.arange(20.0) for name in ("entropy", "cross_entropy")}
    clean = np.zeros(20, bool)
    row, other = filter_rates(clean, found, curves_of(clean, found))
    # The order of the rows is not that of `found`.
    assert (row["score"], other["score"]) == ("cross_entropy", "entropy")
    assert row["auroc"] is None and row["precision_0.1"] is None and row["recall_0.1"] is None


def test_choices_have_precision_and_recall():
    flags = np.array([True, True, True, True, False, False, False, False])
    found = {"suspects": np.zeros(8, bool), "labelled": np.ones(8, bool)}
    found["suspects"][[0, 1, 2, 4]] = True
    found["labelled"][[0, 1, 2]] = False
    rates = choice_rates(flags, found)
    assert rates == {
        "suspects": 4,
        "suspects_poisoned": 0.75,
        "poison_suspected": 0.75,
        "labelled_poisoned": 0.2,
    }
    found["suspects"][4] = False
    rates = choice_rates(flags, found)
    assert (rates["suspects_poisoned"], rates["poison_suspected"]) == (1.0, 0.75)
    none = choice_rates(np.zeros(8, bool), found)
    assert none["poison_suspected"] is None and none["suspects_poisoned"] == 0.0
