"""Small data sets for tests, and checks that every data set must pass."""

from __future__ import annotations

import numpy as np
import pytest

from d3jax.core.errors import DataError
from d3jax.core.types import Dataset


def small_arrays(n: int = 12, shape: tuple[int, ...] = (8, 6, 3)) -> dict[str, np.ndarray]:
    """Return the arrays of a valid data set of 3 classes, which tests write to files and damage."""
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (n, *shape), np.uint8),
        "train_labels": np.arange(n) % 3,
        "test_images": rng.integers(0, 256, (4, *shape), np.uint8),
        "test_labels": np.arange(4) % 3,
    }


def fails(make, *words: str) -> str:
    """Return the message of the `DataError` that `make()` raises.

    The message must be one line and contain all `words`.
    """
    with pytest.raises(DataError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
    return message


def nearest_mean_accuracy(dataset: Dataset) -> float:
    """Return the test accuracy of the nearest-class-mean classifier.

    An accuracy above chance shows that labels and images belong together.
    """
    train, test = (
        split.images.reshape(len(split.images), -1) / 255 for split in (dataset.train, dataset.test)
    )
    means = np.stack(
        [train[dataset.train.labels == label].mean(0) for label in range(dataset.info.num_classes)]
    )
    nearest = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    return float((nearest == dataset.test.labels).mean())


def check_contract(dataset: Dataset) -> None:
    """Assert the dtypes, shapes, label range and hashable info that every data set must have."""
    info = dataset.info
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.uint8 and split.images.shape == (
            len(split.labels),
            *info.shape,
        )
        assert (
            split.labels.dtype == np.int32
            and split.labels.min() >= 0
            and split.labels.max() < info.num_classes
        )
    assert len(info.mean) == len(info.std) == info.shape[2] and min(info.std) > 0
    assert hash(info) is not None and all(
        type(name) is str for name in info.classes
    )  # static under jit
