"""Tests of data sets of TensorFlow Datasets, which are prepared once and cached."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.data import (
    TfdsConfig,
    fingerprint,
    make_tfds,
)

from ..helpers.data_sets import check_contract, fails

tfds_cache = sys.modules["d3jax.data.tfds"]


@pytest.fixture
def mocked(monkeypatch):
    """Yield tensorflow_datasets with 40 random images in place of downloads.

    Every data set counts as prepared, so TensorFlow is not needed.
    """
    import tensorflow_datasets

    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "is_prepared", lambda self: True)
    with tensorflow_datasets.testing.mock_data(num_examples=40):
        yield tensorflow_datasets


def test_tfds_prepares_once_and_then_reads_its_cache(mocked, tmp_path, monkeypatch):
    builder, asked = mocked.core.DatasetBuilder, []
    read = builder.as_data_source
    monkeypatch.setattr(
        builder,
        "as_data_source",
        lambda self, split: asked.append(split) or read(self, split=split),
    )
    monkeypatch.setenv("D3JAX_CACHE", str(tmp_path / "cache"))
    config = TfdsConfig(dataset="cifar10")
    first = make_tfds(config)
    check_contract(first)
    assert asked == ["train", "test"]  # the mock gives both the same images
    assert (
        first.train.images.shape == (40, 32, 32, 3)
        and first.info.name == "cifar10"
        and first.info.num_classes == 10
    )
    assert (first.info.mean, first.info.crop, first.info.flip) == (
        (0.4914, 0.4822, 0.4465),
        4,
        True,
    )
    source = mocked.builder("cifar10").as_data_source(split="train")
    np.testing.assert_array_equal(first.train.images, [source[i]["image"] for i in range(40)])
    np.testing.assert_array_equal(first.train.labels, [source[i]["label"] for i in range(40)])
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["cifar10.npz"]

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it now fails
    assert fingerprint(make_tfds(config)) == fingerprint(first)
    fails(lambda: make_tfds(TfdsConfig(dataset="mnist")), "tfds:mnist", ".[tfds]")


def test_tfds_statistics_of_unknown_sets_are_measured(mocked, tmp_path):
    dataset = make_tfds(TfdsConfig(dataset="emnist/mnist", cache_dir=str(tmp_path)))
    check_contract(dataset)
    assert [file.name for file in tmp_path.iterdir()] == ["emnist-mnist.npz"]
    assert dataset.info.shape == (28, 28, 1) and not dataset.info.flip and dataset.info.crop == 0
    assert dataset.info.mean[0] == pytest.approx(dataset.train.images.mean() / 255, abs=1e-4)


def test_tfds_splits_are_chosen_and_checked_before_a_download(mocked, tmp_path, monkeypatch):
    def load(**settings):
        return make_tfds(TfdsConfig(dataset="cifar10", cache_dir=str(tmp_path), **settings))

    part = load(train_split="train[:50%]", test_split="train[50%:]")
    check_contract(part)
    assert [file.name for file in tmp_path.iterdir()] == ["cifar10-train--50---train-50---.npz"]

    def download(*_, **__):
        raise AssertionError("started a download that cannot be used")

    splits = property(lambda self: {"train": None, "test": None})
    monkeypatch.setattr(mocked.core.DatasetInfo, "splits", splits)
    monkeypatch.setattr(mocked.core.DatasetBuilder, "download_and_prepare", download)
    message = "test_split: it has no split 'validation'; it has train, test"
    fails(lambda: load(test_split="validation"), "tfds:cifar10", message)


def test_tfds_without_tensorflow_says_what_to_install_before_it_downloads(tmp_path, monkeypatch):
    import tensorflow_datasets

    def download(*_, **__):
        raise AssertionError("started a download that cannot be used")

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", download)
    config = TfdsConfig(
        dataset="cifar10", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )
    fails(lambda: make_tfds(config), "tfds:cifar10", ".[tfds]", "tensorflow")
    assert not list((tmp_path / "cache").iterdir())


def test_tfds_sets_that_cannot_be_used_are_refused(mocked, tmp_path, monkeypatch):
    def load(name):
        return lambda: make_tfds(TfdsConfig(dataset=name, cache_dir=str(tmp_path)))

    fails(load("cats_vs_dogs"), "tfds:cats_vs_dogs", "vary in size", "[None, None, 3]", "folder")
    fails(load("div2k"), "tfds:div2k", "no image and no label", "hr")
    fails(load("cifra10"), "tfds:cifra10", "not found")

    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(mocked.core.DatasetBuilder, "download_and_prepare", offline)
    fails(load("mnist"), "tfds:mnist", "cannot prepare it: ConnectionError: no route to host")
    assert not list(tmp_path.iterdir())  # no failure leaves a cache behind


def test_tfds_cache_is_written_whole_or_not_at_all(mocked, tmp_path, monkeypatch):
    def full_disk(path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    config = TfdsConfig(dataset="mnist", cache_dir=str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(tfds_cache.np, "savez", full_disk)
        fails(
            lambda: make_tfds(config),
            tmp_path / "cache" / "mnist.npz",
            "cannot be written",
            "No space left",
        )
    assert not list((tmp_path / "cache").iterdir())
    check_contract(make_tfds(config))
    (tmp_path / "cache" / "mnist.npz").write_bytes(b"damaged by someone else")
    fails(lambda: make_tfds(config), tmp_path / "cache" / "mnist.npz", "delete this cache")
    (tmp_path / "file").touch()
    fails(
        lambda: make_tfds(TfdsConfig(dataset="mnist", cache_dir=str(tmp_path / "file"))),
        tmp_path / "file",
        "cannot be written",
    )


def test_tfds_malformed_names_are_refused():
    assert TfdsConfig.from_argument("cifar10") == {"dataset": "cifar10"}
    for name in ("", "../secret", "a b", "-x"):
        with pytest.raises(ConfigError, match="^dataset: "):
            TfdsConfig(dataset=name)
