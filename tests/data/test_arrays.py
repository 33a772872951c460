"""Data sets from arrays, and their fingerprints."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from d3jax.core.types import Split
from d3jax.data import (
    fingerprint,
    from_arrays,
)

from ..helpers.data_sets import check_contract, small_arrays


def test_from_arrays_measures_and_counts():
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


def test_fingerprint_sees_every_part():
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
    )  # wherever the arrays live
