"""Mistakes of library callers get one clear error."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import d3jax
from d3jax.core.checks import check_built, check_labelled
from d3jax.core.errors import ConfigError, DataError

DATA = d3jax.data.synthetic(size=8, classes=3, train=30, test=12).build()
MODEL = d3jax.models.wide_resnet(depth=10).build(DATA.info)
ATTACK = d3jax.attacks.badnets(rate=0.1).build(DATA.info)
VARIABLES = jax.eval_shape(MODEL.init, jax.random.key(0))
FLOATS = DATA.test._replace(images=d3jax.as_float(np.asarray(DATA.test.images)))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (FLOATS, "images are float32.*want uint8.*as_levels"),
        (DATA.test._replace(images=DATA.test.images[0]), r"images are uint8 \[8, 8, 3\]"),
        (DATA.test._replace(labels=np.eye(3)[DATA.test.labels]), "labels are float64.*integers"),
        (DATA.test._replace(labels=DATA.test.labels[:5]), "12 images and 5 labels"),
        (d3jax.Split(DATA.test.images[:0], DATA.test.labels[:0]), "0 images and 0 labels"),
        (DATA.test._replace(labels=DATA.test.labels + 1), "labels are 1 to 3, want 0 to 2"),
        (DATA.test.images, "want a d3jax.Split, got a ndarray"),
    ],
)
def test_a_split_that_is_no_labelled_set_is_refused(split, message):
    with pytest.raises(DataError, match=f"^test: .*{message}"):
        check_labelled("test", split, 3)


def test_a_value_of_another_type_is_refused_with_a_hint():
    check_built(model=MODEL, attack=ATTACK, dataset=DATA, variables=d3jax.Variables({}, {}))
    backdoored = d3jax.Backdoored(d3jax.Variables({}, {}), None, {})
    for name, value, message in (
        (
            "dataset",
            d3jax.data.digits(),
            "want a d3jax.Dataset, got a DigitsConfig; call its bui",
        ),
        ("attack", d3jax.attacks.badnets(), "want a d3jax.Attack, got a BadNetsConfig; call its b"),
        ("variables", backdoored, "want a d3jax.Variables, got a Backdoored; give its .variables"),
        ("model", 3, "want a d3jax.Model, got a int"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: {message}"):
            check_built(**{name: value})


def test_floats_are_no_levels():
    with pytest.raises(DataError, match="want 8-bit levels from 0 to 255 as integers, got float32"):
        d3jax.as_float(FLOATS.images)


def test_library_functions_check_what_they_are_given():
    key, short = jax.random.key(0), d3jax.TrainConfig(steps=1, batch_size=4)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), VARIABLES)
    evaluate = d3jax.make_evaluate(MODEL, ATTACK, 3)
    repair = d3jax.defenses.finetune().build(DATA.info).repair
    bad = DATA._replace(train=DATA.train._replace(labels=DATA.train.labels[:3]))
    for make, error, message in (
        (lambda: d3jax.train_backdoored(key, MODEL, bad, ATTACK, short), DataError, "3 labels"),
        (lambda: d3jax.train_backdoored(key, MODEL, DATA, ATTACK, {}), ConfigError, "TrainConfig"),
        (lambda: evaluate(zeros, None, FLOATS), DataError, "test: images are float32"),
        (lambda: evaluate(zeros._asdict(), None, DATA.test), ConfigError, "variables: want"),
        (lambda: repair(key, MODEL, zeros, FLOATS), DataError, "reserved: images are float32"),
        (lambda: d3jax.invert(key, MODEL, zeros, FLOATS), DataError, "images are float32"),
    ):
        with pytest.raises(error, match=message):
            make()


def test_another_number_of_classes_than_the_models_is_refused():
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), VARIABLES)
    trigger = ATTACK.init(jax.random.key(0))
    with pytest.raises(ConfigError, match="num_classes: 5, but the model has 3 classes"):
        d3jax.make_evaluate(MODEL, ATTACK, 5)(zeros, trigger, DATA.test)
