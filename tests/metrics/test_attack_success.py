"""Tests of ACC, ASR, RA and DER against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.attacks import BadNetsConfig, CleanConfig, make_badnets, make_clean
from d3jax.core.types import DataInfo, Model, Outputs, Split, Variables
from d3jax.metrics.attack_success import Counts, der, make_evaluate

INFO = DataInfo("x", (4, 4, 1), ("a", "b", "c"), (0.5,), (0.5,))
NOTHING = Variables({}, {})


def model_that_says(table):
    """Return a model that reads the class from the first pixel, and predicts from a table.

    The prediction is table[class, triggered].
    """

    def apply(variables, images, *, train):
        truth = jnp.round(images[:, 0, 0, 0] * 255).astype(int)
        triggered = (images[:, -1, -1, 0] == 1).astype(int)
        return Outputs(jax.nn.one_hot(jnp.asarray(table)[truth, triggered], 3), {}, {})

    return Model(lambda key: NOTHING, apply)


def images_of(labels):
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = labels
    return Split(images, np.asarray(labels, np.int32))


TEST = images_of([0] * 3 + [1] * 5 + [2] * 4)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_counts_do_not_depend_on_the_batch_size(batch_size):
    # Clean images: classes 0 and 1 are predicted correctly, and class 2 as 1.
    # Triggered ones: 0 as 0 (the target, not counted), 1 as the target 0, and 2 as 2.
    model = model_that_says([[0, 0], [1, 0], [1, 2]])
    attack = make_badnets(BadNetsConfig(size=1), INFO)
    counts = make_evaluate(model, attack, 3, batch_size)(
        NOTHING, attack.init(jax.random.key(0)), TEST
    )
    assert counts.clean.tolist() == [3, 5, 4] and counts.correct.tolist() == [3, 5, 0]
    assert (
        counts.triggered.tolist() == [0, 5, 4]
        and counts.reached.tolist() == [0, 5, 0]
        and counts.recovered.tolist() == [0, 0, 4]
    )
    assert counts.acc == 8 / 12 and counts.asr == 5 / 9 and counts.ra == 4 / 9
    assert counts.acc_non_target == 5 / 9


def test_the_target_class_is_never_counted_in_asr():
    model = model_that_says([[0, 0], [0, 0], [0, 0]])
    attack = make_badnets(BadNetsConfig(size=1, target=2), INFO)
    counts = make_evaluate(model, attack, 3)(NOTHING, attack.init(jax.random.key(0)), TEST)
    assert counts.triggered.tolist() == [3, 5, 0] and counts.asr == 0


def test_the_class_that_a_trigger_leads_to_instead_of_the_target_is_found():
    """Of class 1, the trigger sends all five images to class 0, and class 0 keeps its own three."""
    model = model_that_says([[0, 0], [1, 0], [2, 0]])
    attack = make_badnets(BadNetsConfig(size=1, target=2), INFO)
    counts = make_evaluate(model, attack, 3)(NOTHING, attack.init(jax.random.key(0)), TEST)
    assert counts.mistaken.tolist() == [5, 0, 0]
    assert counts.asr == 0 and counts.moved == (0, 1.0)
    assert counts._replace(mistaken=None).moved[0] == -1


def test_all_to_all_counts_every_image():
    model = model_that_says([[0, 1], [1, 2], [2, 1]])
    attack = make_badnets(BadNetsConfig(size=1, mode="all_to_all"), INFO)
    counts = make_evaluate(model, attack, 3)(NOTHING, attack.init(jax.random.key(0)), TEST)
    assert counts.triggered.tolist() == [3, 5, 4] and counts.asr == 8 / 12


def test_without_a_trigger_asr_is_undefined():
    model, attack = model_that_says([[0, 0], [1, 1], [2, 2]]), make_clean(CleanConfig(), INFO)
    counts = make_evaluate(model, attack, 3)(NOTHING, {}, TEST)
    assert (
        counts.acc == 1
        and np.isnan(counts.asr)
        and np.isnan(counts.ra)
        and np.isnan(der(counts, counts))
    )


def counts_with(acc, asr):
    whole = np.array([100])
    return Counts(whole, np.array([acc]), whole, np.array([asr]), np.array([0]))


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ((90, 100), (88, 0), (1.0 - 0.02 + 1) / 2),
        ((90, 100), (95, 0), 1.0),  # a gain in ACC earns nothing
        ((90, 50), (90, 80), 0.5),  # a gain in ASR costs nothing
        ((90, 50), (70, 80), 0.4),
    ],
)
def test_der_matches_its_formula(before, after, value):
    assert der(counts_with(*before), counts_with(*after)) == pytest.approx(value)
