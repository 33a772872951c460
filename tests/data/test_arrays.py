"""Tests of data sets from arrays, and of their fingerprints."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.types import Split
from d3jax.data import (
    fingerprint,
    from_arrays,
)

from ..helpers.data_sets import check_contract, fails, small_arrays


def test_from_arrays_measures_mean_and_std_and_counts_classes():
    a = small_arrays(1200)
    a["train_images"][..., 1] = 77
    dataset = from_arrays(
        (a["train_images"], a["train_labels"]), (jnp.asarray(a["test_images"]), a["test_labels"])
    )
    check_contract(dataset)
    assert dataset.info.classes == ("0", "1", "2")
    pixels = a["train_images"] / 255
    np.testing.assert_allclose(dataset.info.mean, pixels.mean((0, 1, 2)), atol=6e-5)
    np.testing.assert_allclose(
        dataset.info.std, np.maximum(pixels.std((0, 1, 2)), 1 / 255), atol=6e-5
    )


def test_fingerprint_changes_with_every_part_of_a_data_set():
    a = small_arrays()

    def make(**changes):
        b = {key: array.copy() for key, array in a.items()}
        for key, value in changes.items():
            b[key].flat[-1] = value
        return from_arrays(
            (b["train_images"], b["train_labels"]),
            (b["test_images"], b["test_labels"]),
            classes="abc",
        )

    base = make()
    others = [make(**{key: (int(array.flat[-1]) + 1) % 3}) for key, array in a.items()]
    changes = ({"crop": 1}, {"name": "x"}, {"mean": (0.0,) * 3})
    others += [base._replace(info=dataclasses.replace(base.info, **change)) for change in changes]
    others += [
        base._replace(train=Split(base.train.images.reshape(12, 6, 8, 3), base.train.labels))
    ]
    prints = [fingerprint(dataset) for dataset in (base, *others)]
    assert len(set(prints)) == len(prints) and all(len(p) == 16 and int(p, 16) >= 0 for p in prints)
    assert (
        fingerprint(base._replace(train=Split(*map(jnp.asarray, base.train)))) == prints[0]
    )  # host and device arrays have one fingerprint


def made(**arguments):
    """Return `small_arrays` as a data set, with other arrays or options of `from_arrays`."""
    a = small_arrays() | {
        k: v for k, v in arguments.items() if k.endswith(("images", "labels")) and "_" in k
    }
    options = {k: v for k, v in arguments.items() if k not in a}
    train, test = ((a[f"{part}_images"], a[f"{part}_labels"]) for part in ("train", "test"))
    return from_arrays(train, test, **options)


def test_labels_that_do_not_begin_at_0_are_refused_unless_a_mapping_is_given():
    train, test = np.arange(12) % 3, np.arange(4) % 3
    later = {"train_labels": train + 1, "test_labels": test + 1}
    fails(
        lambda: made(**later),
        "no training image is of class 0",
        "labels there are 1, 2, 3",
        "labels: from_one",
    )
    plain, moved = made(), made(**later, labels="from_one")
    np.testing.assert_array_equal(plain.train.labels, moved.train.labels)
    np.testing.assert_array_equal(plain.test.labels, moved.test.labels)
    fails(lambda: made(labels="from_one"), "train_labels has 0, want 1 or more")

    odd = {"train_labels": np.array([7, 10, 3])[train], "test_labels": np.array([7, 10, 3])[test]}
    fails(
        lambda: made(**odd),
        "no training image is of class 0, 1, 2, 4, 5, 6, 8, 9",
        "a mapping",
    )
    mapped = made(**odd, labels={7: 0, 10: 1, 3: 2})
    np.testing.assert_array_equal(plain.train.labels, mapped.train.labels)
    fails(lambda: made(**odd, labels={7: 0, 10: 1}), "train_labels has 3, which the mapping")
    fails(lambda: made(classes=("a", "b", "c", "d")), "no training image is of class 3 (d)")


def test_images_of_one_level_or_of_levels_0_and_1_are_refused():
    shape = small_arrays()["train_images"].shape
    ones = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8) % 2
    fails(
        lambda: made(train_images=ones),
        "train_images has only the levels 0 to 1",
        "multiply by 255",
    )
    fails(
        lambda: made(test_images=np.full((4, *shape[1:]), 9, np.uint8)),
        "test_images is 9 everywhere",
    )


@pytest.mark.parametrize("name", ["\u202egod", "\x1b[31mred", "a\nb", "", "a" * 201])
def test_a_class_name_that_cannot_be_shown_is_refused(name):
    arrays = small_arrays()
    pairs = [(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")]
    fails(
        lambda: from_arrays(*pairs, classes=["a", "b", name]),
        f"arrays: a class is called {name[:40]!r}",
        "want 1 to 200 letters that can be shown",
    )
